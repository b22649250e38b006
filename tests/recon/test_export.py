"""Files are read back with the tools that users have; failures must leave nothing behind."""

import errno
import json
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from mri_ambient.errors import InputError
from mri_ambient.operators import fft2c
from mri_ambient.recon.result import Reconstruction, ReconstructionWriter, image_geometry, load_reconstruction
from mri_ambient.scan import Scan, load_scan
from mri_ambient.volumes import load_volume

SHAPE = (3, 6, 5)
AFFINE = np.array([[0.0, 0, -0.7, 31], [0, -1.2, 0, 40], [4, 0, 0, -20], [0, 0, 0, 1]])  # axial: S, P, L


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.complex64, generator=torch.Generator().manual_seed(len(shape)))


@pytest.fixture
def volume() -> Reconstruction:
    return Reconstruction(
        mean=1e-5 * normal(*SHAPE),
        std=1e-6 * normal(*SHAPE).abs(),
        samples=1e-5 * normal(3, 2, 6, 5),
        sensitivity_maps=normal(3, 4, 8, 9),
        attributes={"method": "posterior", "prior": "brain", "noise_std": 2.5e-7, "versions": {"torch": "2"}},
        name="scan7",
        voxel_size=(4.0, 1.2, 0.7),
        affine=AFFINE,
    )


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_hdf5_has_the_documented_layout(volume, tmp_path):
    volume.save(tmp_path / "new" / "x_recon.h5")
    assert files(tmp_path / "new") == ["x_recon.h5"]
    with h5py.File(tmp_path / "new" / "x_recon.h5") as file:
        layout = {name: (data.shape, data.dtype.name) for name, data in file.items()}
        assert layout == {
            "reconstruction": ((3, 6, 5), "float32"),
            "reconstruction_complex": ((3, 6, 5), "complex64"),
            "std": ((3, 6, 5), "float32"),
            "samples": ((3, 2, 6, 5), "complex64"),
            "sensitivity_maps": ((3, 4, 8, 9), "complex64"),
        }
        np.testing.assert_array_equal(file["reconstruction"], volume.magnitude)
        assert file.attrs["prior"] == "brain"
        assert file.attrs["noise_std"] == 2.5e-7
        assert json.loads(file.attrs["versions"]) == {"torch": "2"}


def test_hdf5_comes_back_as_it_was(volume, tmp_path):
    back = load_reconstruction(volume.save(tmp_path / "x.h5"))
    for key in ("mean", "std", "samples", "sensitivity_maps"):
        assert torch.equal(getattr(back, key), getattr(volume, key))
    assert back.attributes == volume.attributes
    assert (back.name, back.voxel_size) == ("scan7", (4.0, 1.2, 0.7))
    np.testing.assert_array_equal(back.affine, AFFINE)


def test_a_point_estimate_has_no_error_bar(tmp_path):
    point = Reconstruction(normal(*SHAPE).numpy(), attributes={"method": "tv", "prior": None})
    back = load_reconstruction(point.save(tmp_path / "x.h5"))
    assert back.std is None
    assert back.samples is None
    assert back.affine is None
    assert back.attributes == {"method": "tv"}
    point.save(tmp_path / "x.nii.gz")
    point.save(tmp_path / "dicom")
    assert files(tmp_path) == ["dicom", "x.h5", "x.nii.gz"]
    assert files(tmp_path / "dicom") == ["0001.dcm", "0002.dcm", "0003.dcm"]


@pytest.mark.parametrize(
    "arrays",
    [
        {"mean": torch.zeros(6, 5)},
        {"std": torch.zeros(2, 6, 5)},
        {"samples": torch.zeros(2, 3, 6, 5)},
        {"samples": torch.zeros(3, 6, 5)},
        {"sensitivity_maps": torch.zeros(4, 8, 9)},
        {"mean": torch.full(SHAPE, torch.nan)},
    ],
)
def test_refuses_what_does_not_fit(arrays):
    with pytest.raises(ValueError, match=r"shapes|finite"):
        Reconstruction(**{"mean": torch.zeros(SHAPE), **arrays})


def test_writer_takes_slices_in_any_order_and_late_attributes(volume, tmp_path):
    path = tmp_path / "x.h5"
    with ReconstructionWriter(path, 3, attributes={"method": "posterior"}) as writer:
        for index in (2, 0, 1):
            assert not path.exists()
            writer.write(index, volume.mean[index], volume.std[index])
        writer.attributes["seconds"] = 1.5
    back = load_reconstruction(path)
    assert torch.equal(back.mean, volume.mean)
    assert torch.equal(back.std, volume.std)
    assert back.attributes == {"method": "posterior", "seconds": 1.5}


def test_writer_stores_slices_as_they_come(volume, tmp_path):
    """Not collected in memory: a full disk shows at once, not at the end."""
    with ReconstructionWriter(tmp_path / "x.h5", 2) as writer:
        writer.write(0, normal(30, 30))
        (partial,) = tmp_path.iterdir()
        assert partial.stat().st_size >= 30 * 30 * 8
        writer.write(1, normal(30, 30))


def write(path: Path, slices: int, *written: tuple[int, dict], failure: Exception | None = None, **attributes) -> None:
    with ReconstructionWriter(path, slices, attributes=attributes) as writer:
        for index, arrays in written:
            writer.write(index, **arrays)
        if failure:
            raise failure


@pytest.mark.parametrize(
    ("slices", "written", "attributes", "message"),
    [
        (2, [(0, {"mean": normal(6, 5)}), (1, {"mean": normal(6, 4)})], {}, "first one"),
        (2, [(0, {"mean": normal(6, 5)}), (1, {"mean": normal(6, 5), "std": torch.ones(6, 5)})], {}, "first one"),
        (2, [(2, {"mean": normal(6, 5)})], {}, "no slice 2"),
        (2, [(1, {"mean": normal(6, 5)})], {}, "1 of 2 slices"),
        (1, [(0, {"mean": normal(6, 5)})], {"device": object()}, "attributes"),
    ],
)
def test_writer_refuses_what_is_not_one_volume(slices, written, attributes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        write(tmp_path / "x.h5", slices, *written, **attributes)
    assert files(tmp_path) == []


@pytest.mark.parametrize("failure", [RuntimeError("out of memory"), OSError("scan not readable")])
def test_a_failure_of_the_caller_is_not_blamed_on_the_file(failure, volume, tmp_path):
    path = volume.save(tmp_path / "x.h5")
    before = path.read_bytes()
    with pytest.raises(type(failure), match=str(failure)):
        write(path, 2, (0, {"mean": normal(6, 5)}), failure=failure)
    assert files(tmp_path) == ["x.h5"]
    assert path.read_bytes() == before


def fail(*args: object, **kwargs: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("x.h5", "h5py.Dataset.__setitem__"),
        ("x.h5", "h5py.File.flush"),
        ("x.h5", "h5py.AttributeManager.update"),
        ("x.h5", "pathlib.Path.replace"),
        ("x.nii.gz", "nibabel.save"),
        ("x.nii.gz", "pathlib.Path.replace"),
        ("x.png", "matplotlib.image.imsave"),
        ("x.png", "pathlib.Path.replace"),
        ("x.cfl", "pathlib.Path.write_bytes"),
        ("x.cfl", "pathlib.Path.replace"),
        ("dicom", "pydicom.dataset.Dataset.save_as"),
        ("dicom", "pathlib.Path.replace"),
    ],
)
def test_a_full_disk_leaves_nothing_behind(name, target, volume, tmp_path, monkeypatch):
    monkeypatch.setattr(target, fail)
    with pytest.raises(InputError, match=r"cannot be written.*(disk is full|No space)"):
        volume.save(tmp_path / name)
    assert files(tmp_path) == []


@pytest.mark.parametrize("name", ["x.nii.gz", "x.cfl"])
def test_files_that_belong_together_appear_together(name, volume, tmp_path, monkeypatch):
    """What fails is the last one, when the others are in place already."""
    plain, calls = Path.replace, []

    def full(self: Path, target: Path) -> Path:
        calls.append(target)
        return fail() if "_std" in target.name and target.suffix != ".cfl" else plain(self, target)

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(InputError, match=r"_std.*cannot be written"):
        volume.save(tmp_path / name)
    assert len(calls) > 1
    assert files(tmp_path) == []


@pytest.mark.parametrize("name", ["x.h5", "x.nii.gz", "x.png", "x.cfl", "x.html", "dicom"])
def test_a_file_in_place_of_the_folder_is_said_in_one_sentence(name, volume, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        volume.save(tmp_path / "file" / name)


def test_unknown_ending(volume, tmp_path):
    with pytest.raises(InputError, match=r"\.nii\.gz"):
        volume.save(tmp_path / "x.mat")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda file: file.move("reconstruction_complex", "other"), "no dataset reconstruction_complex"),
        (lambda file: (file.pop("std"), file.create_dataset("std", data=np.zeros((1, 2, 3)))), "not a valid"),
    ],
)
def test_load_refuses_other_files(change, message, volume, tmp_path):
    path = volume.save(tmp_path / "x.h5")
    with h5py.File(path, "r+") as file:
        change(file)
    with pytest.raises(InputError, match=message):
        load_reconstruction(path)
    with pytest.raises(InputError, match="no file"):
        load_reconstruction(tmp_path / "y.h5")


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_nifti(ending, volume, tmp_path):
    import nibabel as nib

    volume.save(tmp_path / f"scan.1{ending}")
    assert files(tmp_path) == [f"scan.1{ending}", f"scan.1_std{ending}"]
    image, error = (nib.load(tmp_path / name) for name in files(tmp_path))
    np.testing.assert_allclose(image.get_qform(coded=False), image.affine, atol=1e-5)
    assert (int(image.header["sform_code"]), int(image.header["qform_code"])) == (1, 1)
    assert image.get_data_dtype() == np.float32
    np.testing.assert_array_equal(image.get_fdata(dtype=np.float32), volume.magnitude.numpy().T)
    np.testing.assert_array_equal(error.get_fdata(dtype=np.float32), volume.std.numpy().T)
    point = AFFINE @ [2, 5, 1, 1]  # slice 2, row 5, column 1
    np.testing.assert_allclose(image.affine @ [1, 5, 2, 1], point, atol=1e-4)
    assert image.header.get_xyzt_units()[0] == "mm"
    assert load_volume(tmp_path / f"scan.1{ending}").magnitude == pytest.approx(volume.magnitude.numpy())


def test_nifti_without_position_says_so(tmp_path):
    import nibabel as nib

    Reconstruction(normal(*SHAPE), voxel_size=(4.0, 1.2, 0.7)).save(tmp_path / "x.nii.gz")
    header = nib.load(tmp_path / "x.nii.gz").header
    assert (int(header["sform_code"]), int(header["qform_code"])) == (0, 0)
    assert header.get_zooms() == pytest.approx((0.7, 1.2, 4.0))


def test_nifti_of_sheared_axes_has_no_rotation(volume, tmp_path):
    """A qform is a rotation: readers that prefer it would place the voxels elsewhere."""
    import nibabel as nib

    sheared = AFFINE.copy()
    sheared[0, 0] = 0.5
    replace(volume, affine=sheared).save(tmp_path / "x.nii")
    image = nib.load(tmp_path / "x.nii")
    assert int(image.header["qform_code"]) == 0
    np.testing.assert_allclose(image.affine, sheared[:, [2, 1, 0, 3]], atol=1e-5)


class TestBart:
    def test_pairs_in_the_order_of_its_dimensions(self, volume, tmp_path):
        volume.save(tmp_path / "scan.1.cfl")
        assert files(tmp_path) == ["scan.1.cfl", "scan.1.hdr", "scan.1_std.cfl", "scan.1_std.hdr"]
        for name, expected in (("scan.1", volume.mean), ("scan.1_std", volume.std)):
            lines = (tmp_path / f"{name}.hdr").read_text().splitlines()
            assert lines == ["# Dimensions", "6 5 1 1 1 1 1 1 1 1 1 1 1 3 1 1"]
            values = np.fromfile(tmp_path / f"{name}.cfl", "<c8").reshape(3, 5, 6)  # the first dimension is fastest
            np.testing.assert_array_equal(values.transpose(0, 2, 1), expected.to(torch.complex64))

    def test_the_reader_of_k_space_understands_it(self, volume, tmp_path):
        volume.save(tmp_path / "x.cfl")
        np.testing.assert_array_equal(load_scan(tmp_path / "x").kspace[:, 0], volume.mean)

    @pytest.mark.skipif(shutil.which("bart") is None, reason="BART is not installed")
    @pytest.mark.parametrize("shape", [(1, 6, 5), (3, 7, 4)])
    def test_bart_reads_it(self, shape, tmp_path):
        def bart(*words: object) -> str:
            done = subprocess.run(["bart", *map(str, words)], cwd=tmp_path, check=True, capture_output=True, text=True)
            return done.stdout

        volume = Reconstruction(normal(*shape))
        volume.save(tmp_path / "x.cfl")
        assert f"{shape[1]} {shape[2]} 1 1" in " ".join(bart("show", "-m", "x").split())
        bart("fft", "-u", 3, "x", "k")  # both dimensions of the plane, and no other
        kspace = load_scan(tmp_path / "k").kspace[:, 0]
        torch.testing.assert_close(kspace, fft2c(volume.mean), atol=1e-6, rtol=1e-5)
        bart("fft", "-u", "-i", 3, "k", "back")
        assert float(bart("nrmse", "x", "back")) < 1e-6
        bart("slice", 13, shape[0] - 1, "x", "last")
        last = np.array([complex(word.replace("i", "j")) for word in bart("show", "last").split()])
        np.testing.assert_allclose(last.reshape(shape[2], shape[1]).T, volume.mean[-1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("slices", "grid"), [(1, (1, 1)), (5, (2, 3))])
def test_png(slices, grid, tmp_path):
    from matplotlib.image import imread

    volume = Reconstruction(torch.arange(1.0, slices + 1)[:, None, None] * 1e-6 * torch.ones(slices, 4, 4))
    picture = imread(volume.save(tmp_path / "x.png"))[..., 0]
    assert picture.shape == (4 * grid[0], 4 * grid[1])
    np.testing.assert_allclose(picture[:4, :4], 1 / slices, atol=0.01)
    np.testing.assert_allclose(picture[-4:, -4:], 1 if slices == 1 else 0, atol=0.01)


def test_geometry_of_the_crop():
    """A crop moves the first voxel; it does not move the anatomy."""
    scan = Scan.from_arrays(normal(2, 1, 12, 8), recon_size=(6, 5))
    assert image_geometry(scan) == (None, None)
    known = {"voxel_mm_slice": 4.0, "voxel_mm_y": 1.2, "voxel_mm_x": 0.7, "affine": json.dumps(AFFINE.tolist())}
    scan.attributes.update(known)
    voxel, affine = image_geometry(scan)
    assert voxel == (4.0, 1.2, 0.7)
    np.testing.assert_allclose(affine @ [1, 6 // 2, 5 // 2, 1], AFFINE @ [1, 12 // 2, 8 // 2, 1])
    scan.attributes["affine"] = "[1, 2]"
    with pytest.raises(InputError, match="4 x 4"):
        image_geometry(scan)
