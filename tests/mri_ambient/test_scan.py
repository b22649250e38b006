"""Scan files: what is read, when it is read, and that it is written back exactly."""

import pickle
import subprocess
import sys
from importlib import resources
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from mri_ambient.errors import InputError
from mri_ambient.header import parse_header
from mri_ambient.scan import Scan, load_scan, require_acs, write_scan
from mri_ambient.specification import load_specification

SLICES, COILS, HEIGHT, WIDTH = SHAPE = (2, 3, 20, 17)
LINES = np.array([0, 1, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 1, 0], bool)  # centre 8, nine central lines

HEADER = """<?xml version="1.0" encoding="utf-8"?>
<ismrmrdHeader{namespace}>
  <encoding>
    <encodedSpace>
      <matrixSize><x>20</x><y>{encoded}</y><z>1</z></matrixSize>
      <fieldOfView_mm><x>40</x><y>25.5</y><z>5</z></fieldOfView_mm>
    </encodedSpace>
    <reconSpace>
      <matrixSize><x>10</x><y>12</y><z>2</z></matrixSize>
      <fieldOfView_mm><x>20</x><y>18</y><z>9</z></fieldOfView_mm>
    </reconSpace>
    <encodingLimits>
      <kspace_encoding_step_1><minimum>0</minimum><maximum>{maximum}</maximum><center>{center}</center></kspace_encoding_step_1>
    </encodingLimits>
  </encoding>
</ismrmrdHeader>"""


def header(encoded: int = WIDTH, center: int = 6, maximum: int = 11, namespace: str | None = None) -> str:
    text = ' xmlns="http://www.ismrm.org/ISMRMRD"' if namespace is None else namespace
    return HEADER.format(encoded=encoded, center=center, maximum=maximum, namespace=text)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.normal(size=shape) + 1j * rng.normal(size=shape)).astype(np.complex64)


@pytest.fixture
def kspace() -> np.ndarray:
    return noise(*SHAPE)


def save(path: Path, attributes: dict | None = None, **datasets: object) -> Path:
    with h5py.File(path, "w") as file:
        for name, values in datasets.items():
            file[name] = values
        file.attrs.update(attributes or {})
    return path


class TestFastmriFiles:
    def test_train_file(self, tmp_path, kspace):
        target = np.abs(noise(SLICES, 10, 12))
        path = save(
            tmp_path / "file1.h5",
            {"acquisition": "AXT2", "max": 3.5, "norm": 20.0, "patient_id": "p7"},
            kspace=kspace,
            reconstruction_rss=target,
            ismrmrd_header=header(center=8, maximum=16),
        )
        scan = load_scan(path)
        assert (scan.name, scan.shape, scan.patient, scan.padding) == ("file1", SHAPE, "p7", (0, 0))
        assert scan.attributes["acquisition"] == "AXT2"
        assert scan.attributes["max"] == 3.5
        assert "patient_id" not in scan.attributes
        assert scan.mask.dtype == torch.bool
        assert scan.mask.tolist() == [True] * WIDTH
        assert scan.acceleration == 1
        assert scan.noise_std is None
        assert scan.recon_size == (10, 12)
        assert scan.has_target
        assert scan.target.dtype == torch.float32
        np.testing.assert_array_equal(scan.target, target)
        np.testing.assert_array_equal(scan.read_target(1), target[1])
        assert scan.read(0).dtype == torch.complex64
        np.testing.assert_array_equal(scan.read(1), kspace[1])
        np.testing.assert_array_equal(scan.read(-1), kspace[1])
        np.testing.assert_array_equal(scan.kspace, kspace)

    def test_test_file_without_target(self, tmp_path, kspace):
        scan = load_scan(save(tmp_path / "a.h5", kspace=kspace * LINES, mask=LINES.astype(np.float32)))
        np.testing.assert_array_equal(scan.mask, LINES)
        assert not scan.has_target
        assert scan.target is None
        assert scan.sensitivity_maps is None
        assert scan.acceleration == pytest.approx(WIDTH / LINES.sum())
        assert scan.recon_size == (HEIGHT, WIDTH)

    def test_samples_outside_the_mask_of_the_file_are_ignored(self, tmp_path, kspace):
        scan = load_scan(save(tmp_path / "a.h5", kspace=kspace, mask=LINES))
        np.testing.assert_array_equal(scan.read(0), kspace[0] * LINES)

    def test_single_coil_file_with_both_references(self, tmp_path, kspace):
        rss, esc = np.abs(noise(2, SLICES, 10, 12))
        path = save(tmp_path / "a.h5", kspace=kspace[:, 0], reconstruction_rss=rss, reconstruction_esc=esc)
        scan = load_scan(path)
        assert scan.shape == (SLICES, 1, HEIGHT, WIDTH)
        np.testing.assert_array_equal(scan.kspace, kspace[:, :1])
        np.testing.assert_array_equal(scan.target, esc)

    def test_multi_coil_file_prefers_rss(self, tmp_path, kspace):
        rss, esc = np.abs(noise(2, SLICES, 10, 12))
        path = save(tmp_path / "a.h5", kspace=kspace, reconstruction_rss=rss, reconstruction_esc=esc)
        np.testing.assert_array_equal(load_scan(path).target, rss)

    def test_three_axes_are_coils_only_if_the_dataset_says_so(self, tmp_path, kspace):
        path = save(tmp_path / "a.h5", kspace=kspace[0])
        assert load_scan(path).shape == (COILS, 1, HEIGHT, WIDTH)
        with h5py.File(path, "a") as file:
            file["kspace"].attrs["axes"] = "coil,y,x"
        scan = load_scan(path)
        assert scan.shape == (1, COILS, HEIGHT, WIDTH)
        np.testing.assert_array_equal(scan.read(0), kspace[0])

    def test_double_precision_is_rounded(self, tmp_path, kspace):
        scan = load_scan(save(tmp_path / "a.h5", kspace=kspace.astype(np.complex128)))
        assert scan.read(0).dtype == torch.complex64
        np.testing.assert_array_equal(scan.kspace, kspace)

    @pytest.mark.parametrize("shape", [(1, 1, 8, 8), (1, 2, 9, 31), (3, 5, 31, 8)])
    def test_any_size(self, tmp_path, shape):
        kspace = noise(*shape)
        scan = load_scan(save(tmp_path / "a.h5", kspace=kspace))
        assert scan.shape == shape
        np.testing.assert_array_equal(scan.kspace, kspace)

    def test_real_file(self, data_dir):
        scan = load_scan(data_dir / "brain8" / "brain8.h5")
        assert scan.shape == (1, 8, 230, 180)
        assert scan.mask.shape == (230, 180)
        assert scan.acceleration == pytest.approx(1 / 0.12434782608)
        assert require_acs(scan) == 24
        assert scan.padding == (0, 0)


class TestDetection:
    def test_lines(self, tmp_path, kspace):
        scan = load_scan(save(tmp_path / "a.h5", kspace=kspace * LINES))
        np.testing.assert_array_equal(scan.mask, LINES)
        assert scan.padding == (0, 0)

    def test_lines_though_the_outermost_readout_sample_is_zero(self, tmp_path):
        kspace = noise(1, 1, 200, WIDTH) * LINES
        kspace[..., 0, :] = 0
        np.testing.assert_array_equal(load_scan(save(tmp_path / "a.h5", kspace=kspace)).mask, LINES)

    def test_other_pattern_with_a_sample_that_is_zero_in_one_coil(self, tmp_path, kspace):
        mask = np.random.default_rng(1).random((HEIGHT, WIDTH)) < 0.4
        mask[10, 8] = True
        kspace[:, 0, 10, 8] = 0
        np.testing.assert_array_equal(load_scan(save(tmp_path / "a.h5", kspace=kspace * mask)).mask, mask)

    def test_readout_that_was_not_sampled_completely(self, tmp_path, kspace):
        kspace[..., :5, :] = 0
        expected = np.broadcast_to(np.arange(HEIGHT)[:, None] >= 5, (HEIGHT, WIDTH))
        np.testing.assert_array_equal(load_scan(save(tmp_path / "a.h5", kspace=kspace)).mask, expected)

    def test_silent_first_coil(self, tmp_path, kspace):
        kspace[:, 0] = 0
        np.testing.assert_array_equal(load_scan(save(tmp_path / "a.h5", kspace=kspace * LINES)).mask, LINES)

    def test_slices_that_differ(self, tmp_path, kspace):
        masks = np.stack([LINES, np.roll(LINES, 1)])
        scan = load_scan(save(tmp_path / "a.h5", kspace=kspace * masks[:, None, None]))
        assert scan.mask.shape == (SLICES, 1, WIDTH)
        for index, mask in enumerate(masks):
            np.testing.assert_array_equal(scan.slice_mask(index), mask)
            np.testing.assert_array_equal(scan.read(index), kspace[index] * mask)

    @pytest.mark.parametrize("blank", range(3))
    def test_slice_without_signal_says_nothing_about_the_mask(self, tmp_path, blank):
        kspace = noise(3, COILS, HEIGHT, WIDTH) * LINES
        kspace[blank] = 0
        scan = load_scan(save(tmp_path / "a.h5", kspace=kspace))
        np.testing.assert_array_equal(scan.mask, LINES)
        assert not scan.read(blank).any()

    def test_mask_stored_with_more_axes_than_needed(self, tmp_path, kspace):
        full = np.broadcast_to(LINES, (SLICES, HEIGHT, WIDTH))
        for stored in (LINES[None], full[0], full[:, :1], full):
            scan = load_scan(save(tmp_path / "a.h5", kspace=kspace, mask=stored.astype(np.uint8)))
            np.testing.assert_array_equal(scan.mask, LINES)

    def test_mask_for_every_slice(self, tmp_path, kspace):
        masks = np.random.default_rng(2).random((SLICES, HEIGHT, WIDTH)) < 0.5
        scan = load_scan(save(tmp_path / "a.h5", kspace=kspace, mask=masks))
        np.testing.assert_array_equal(scan.mask, masks)
        np.testing.assert_array_equal(scan.kspace, kspace * masks[:, None])
        assert scan.acceleration == pytest.approx(1 / masks.mean())


class TestHeader:
    # 17 encoded columns, centre at 17 // 2 = 8; step 6 is the centre of k-space, so step 0 is column 2 and
    # step 11 is column 13; 3 columns are left.
    def test_padding_and_sizes(self, tmp_path, kspace):
        kspace[..., :2] = kspace[..., -3:] = 0
        scan = load_scan(save(tmp_path / "a.h5", kspace=kspace, ismrmrd_header=header()))
        assert scan.padding == (2, 3)
        assert scan.mask.tolist() == [False] * 2 + [True] * 12 + [False] * 3
        assert scan.acceleration == 1  # nothing that could have been acquired was left out
        assert scan.recon_size == (10, 12)  # (y, x) = (readout, phase encoding) = the header's (x, y)
        voxel = [scan.attributes[f"voxel_mm_{axis}"] for axis in ("slice", "y", "x")]
        assert voxel == [4.5, 2.0, 1.5]

    @pytest.mark.parametrize("namespace", ["", ' xmlns="urn:other"'])
    def test_namespace_does_not_matter(self, namespace):
        assert parse_header(header(namespace=namespace)) == parse_header(header())
        assert parse_header(header().encode()) == parse_header(header())

    def test_undersampled_columns_next_to_the_padding_are_not_padding(self, tmp_path, kspace):
        kspace[..., :4] = kspace[..., -3:] = 0
        scan = load_scan(save(tmp_path / "a.h5", kspace=kspace, ismrmrd_header=header()))
        assert scan.padding == (2, 3)
        assert scan.mask.sum() == 10
        assert scan.acceleration == pytest.approx(12 / 10)

    def test_samples_in_declared_padding_are_used(self, tmp_path, kspace):
        kspace[..., :1] = kspace[..., -3:] = 0
        scan = load_scan(save(tmp_path / "a.h5", kspace=kspace, ismrmrd_header=header()))
        assert scan.padding == (1, 3)
        assert scan.mask.tolist() == [False] + [True] * 13 + [False] * 3

    def test_mask_of_the_file_does_not_unmask_padding(self, tmp_path, kspace):
        kspace[..., :2] = kspace[..., -3:] = 0
        mask = np.ones(WIDTH)
        scan = load_scan(save(tmp_path / "a.h5", kspace=kspace, mask=mask, ismrmrd_header=header()))
        assert scan.padding == (2, 3)
        assert scan.mask.tolist() == [False] * 2 + [True] * 12 + [False] * 3

    def test_without_header_zero_edges_of_a_full_scan_are_padding(self, tmp_path, kspace):
        kspace[..., :1] = kspace[..., -2:] = 0
        scan = load_scan(save(tmp_path / "a.h5", kspace=kspace))
        assert scan.padding == (1, 2)
        assert scan.acceleration == 1

    def test_without_header_zero_edges_of_an_undersampled_scan_are_not(self, tmp_path, kspace):
        kspace[..., :1] = kspace[..., 4] = kspace[..., -2:] = 0
        scan = load_scan(save(tmp_path / "a.h5", kspace=kspace))
        assert scan.padding == (0, 0)
        assert scan.acceleration == pytest.approx(17 / 13)

    def test_without_header_a_mask_on_zero_columns_tells_padding(self, tmp_path, kspace):
        mask = np.zeros(WIDTH)
        mask[1::2] = 1  # 1, 3, 5, ..., 15
        kspace[..., :4] = kspace[..., -2:] = 0  # the mask claims columns 1, 3 and 15
        scan = load_scan(save(tmp_path / "a.h5", kspace=kspace * mask, mask=mask))
        assert scan.padding == (4, 2)
        assert scan.mask.nonzero().flatten().tolist() == [5, 7, 9, 11, 13]

    def test_recon_size_never_exceeds_kspace(self, tmp_path):
        kspace = noise(1, 1, 20, 8)
        scan = load_scan(save(tmp_path / "a.h5", kspace=kspace, ismrmrd_header=header(encoded=8, center=4, maximum=7)))
        assert scan.recon_size == (10, 8)

    def test_size_of_the_reference_goes_before_the_header(self, tmp_path, kspace):
        target = np.ones((SLICES, 8, 9))
        scan = load_scan(save(tmp_path / "a.h5", kspace=kspace, reconstruction_rss=target, ismrmrd_header=header()))
        assert scan.recon_size == (8, 9)

    def test_header_without_limits_declares_nothing(self):
        found = parse_header("<ismrmrdHeader><encoding/></ismrmrdHeader>")
        assert found.padding(17) is None
        assert found.recon_size is None


class TestLaziness:
    def test_read_touches_one_slice(self, tmp_path, kspace, monkeypatch):
        scan = load_scan(save(tmp_path / "a.h5", kspace=kspace))
        keys = []
        original = h5py.Dataset.__getitem__

        def record(dataset, key, *rest, **options):
            keys.append((dataset.name, key))
            return original(dataset, key, *rest, **options)

        monkeypatch.setattr(h5py.Dataset, "__getitem__", record)
        scan.read(1)
        assert keys == [("/kspace", 1)]

    def test_read_does_not_care_about_other_slices(self, tmp_path):
        kspace = noise(3, COILS, HEIGHT, WIDTH)
        kspace[0, 1] = np.nan
        scan = load_scan(save(tmp_path / "a.h5", kspace=kspace))
        np.testing.assert_array_equal(scan.read(2), kspace[2])
        for index in (0, -3):
            with pytest.raises(InputError, match="slice 0"):
                scan.read(index)

    def test_loading_reads_a_small_part(self, tmp_path, monkeypatch):
        path = save(tmp_path / "a.h5", kspace=noise(10, 8, 64, 16))
        read = []
        original = h5py.Dataset.__getitem__

        def record(dataset, key, *rest, **options):
            values = original(dataset, key, *rest, **options)
            read.append(np.size(values))
            return values

        monkeypatch.setattr(h5py.Dataset, "__getitem__", record)
        load_scan(path)
        assert sum(read) < 10 * 8 * 64 * 16 / 20

    def test_scan_of_a_file_pickles_without_data(self, tmp_path):
        kspace = noise(2, 4, 64, 64)
        scan = pickle.loads(pickle.dumps(load_scan(save(tmp_path / "a.h5", kspace=kspace))))
        assert len(pickle.dumps(scan)) < 5000
        np.testing.assert_array_equal(scan.read(1), kspace[1])

    def test_import_is_light(self):
        heavy = "h5py yaml sigpy fastmri nibabel pydicom skimage matplotlib"
        code = f"import sys, mri_ambient.scan; print(*[name for name in '{heavy}'.split() if name in sys.modules])"
        found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
        assert found == []


class TestWriting:
    def assert_same(self, one: Scan, other: Scan) -> None:
        for name in ("shape", "noise_std", "recon_size", "padding", "patient"):
            assert getattr(one, name) == getattr(other, name)
        for name in ("kspace", "mask", "target", "sensitivity_maps"):
            left, right = getattr(one, name), getattr(other, name)
            assert (left is None) == (right is None)
            if left is not None:
                assert left.dtype == right.dtype
                assert torch.equal(left, right)

    def test_round_trip_of_arrays(self, tmp_path, kspace):
        scan = Scan.from_arrays(
            kspace,
            LINES,
            noise_std=0.1,
            name="a",
            target=np.abs(noise(SLICES, 9, 12)),
            patient="p1",
            sensitivity_maps=noise(*SHAPE, seed=3),
        )
        write_scan(scan, tmp_path / "new" / "a.h5")
        loaded = load_scan(tmp_path / "new" / "a.h5")
        self.assert_same(scan, loaded)
        assert loaded.name == "a"
        assert loaded.attributes == {
            "max": pytest.approx(float(scan.target.max())),
            "norm": pytest.approx(float(scan.target.norm())),
        }
        assert [entry.name for entry in (tmp_path / "new").iterdir()] == ["a.h5"]

    @pytest.mark.parametrize("mask", ["2-D", "slices", "none"])
    def test_round_trip_of_masks(self, tmp_path, kspace, mask):
        rng = np.random.default_rng(4)
        masks = {"2-D": rng.random((HEIGHT, WIDTH)) < 0.5, "slices": rng.random((SLICES, 1, WIDTH)) < 0.5, "none": None}
        scan = Scan.from_arrays(kspace, masks[mask])
        write_scan(scan, tmp_path / "a.h5")
        self.assert_same(scan, load_scan(tmp_path / "a.h5"))

    def test_round_trip_of_a_file_keeps_what_the_header_said(self, tmp_path, kspace):
        kspace[..., :2] = kspace[..., -3:] = 0
        kspace[..., 4] = 0
        path = save(tmp_path / "a.h5", {"max": 1.5, "acquisition": "FLAIR"}, kspace=kspace, ismrmrd_header=header())
        scan = load_scan(path)
        write_scan(scan, tmp_path / "b.h5")
        loaded = load_scan(tmp_path / "b.h5")
        self.assert_same(scan, loaded)
        assert loaded.padding == (2, 3)
        assert loaded.attributes == scan.attributes

    def test_layout_is_fastmri(self, tmp_path, kspace):
        write_scan(Scan.from_arrays(kspace, LINES, target=np.abs(kspace[:, 0])), tmp_path / "a.h5")
        with h5py.File(tmp_path / "a.h5") as file:
            assert (file["kspace"].shape, file["kspace"].dtype) == (SHAPE, np.complex64)
            assert file["mask"].shape == (WIDTH,)
            assert file["reconstruction_rss"].dtype == np.float32
            assert file.attrs["max"] == np.abs(kspace[:, 0]).max()

    def test_scan_can_replace_its_own_file(self, tmp_path, kspace):
        path = save(tmp_path / "a.h5", kspace=kspace)
        write_scan(load_scan(path).undersample(LINES), path)
        np.testing.assert_array_equal(load_scan(path).kspace, kspace * LINES)

    def test_failure_leaves_the_older_file_and_nothing_else(self, tmp_path, kspace):
        path = save(tmp_path / "a.h5", kspace=kspace)
        bad = kspace.copy()
        bad[1] = np.inf
        with pytest.raises(InputError, match="slice 1"):
            write_scan(Scan.from_arrays(bad, LINES), path)
        np.testing.assert_array_equal(load_scan(path).kspace, kspace)
        assert list(tmp_path.iterdir()) == [path]


class TestUndersample:
    def test_masks_compose_and_nothing_comes_back(self, kspace):
        scan = Scan.from_arrays(kspace, LINES)
        other = np.arange(WIDTH) % 2 == 0
        thinner = scan.undersample(other)
        np.testing.assert_array_equal(thinner.mask, LINES & other)
        again = thinner.undersample(np.ones(WIDTH, bool))
        np.testing.assert_array_equal(again.mask, LINES & other)
        np.testing.assert_array_equal(again.read(1), kspace[1] * (LINES & other))
        np.testing.assert_array_equal(scan.mask, LINES)

    def test_padding_stays_out(self, tmp_path, kspace):
        kspace[..., :2] = kspace[..., -3:] = 0
        scan = load_scan(save(tmp_path / "a.h5", kspace=kspace, ismrmrd_header=header()))
        thinner = scan.undersample(torch.ones(WIDTH, dtype=torch.bool))
        assert not thinner.mask[:2].any()
        assert thinner.padding == (2, 3)

    def test_shapes_combine(self, kspace):
        rng = np.random.default_rng(5)
        plane = rng.random((HEIGHT, WIDTH)) < 0.6
        slices = rng.random((SLICES, 1, WIDTH)) < 0.6
        scan = Scan.from_arrays(kspace, LINES).undersample(plane).undersample(slices)
        expected = LINES & plane & slices
        np.testing.assert_array_equal(scan.mask, expected)
        np.testing.assert_array_equal(scan.kspace, kspace * expected[:, None])

    def test_target_and_metadata_stay(self, kspace):
        scan = Scan.from_arrays(kspace, noise_std=0.2, patient="p", target=np.abs(kspace[:, 0]))
        thinner = scan.undersample(LINES)
        assert (thinner.noise_std, thinner.patient) == (0.2, "p")
        assert torch.equal(thinner.target, scan.target)

    def test_file_is_masked_when_read(self, tmp_path, kspace):
        scan = load_scan(save(tmp_path / "a.h5", kspace=kspace)).undersample(LINES)
        np.testing.assert_array_equal(scan.read(0), kspace[0] * LINES)
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(scan)).read(1), kspace[1] * LINES)


class TestArrays:
    def test_numpy_and_tensor_agree(self, kspace):
        one = Scan.from_arrays(kspace, LINES)
        other = Scan.from_arrays(torch.from_numpy(kspace), torch.from_numpy(LINES))
        assert torch.equal(one.kspace, other.kspace)
        assert torch.equal(one.mask, other.mask)

    def test_three_axes_are_one_slice(self, kspace):
        assert Scan.from_arrays(kspace[0], target=np.ones((5, 6))).shape == (1, COILS, HEIGHT, WIDTH)

    def test_mask_is_detected(self, kspace):
        np.testing.assert_array_equal(Scan.from_arrays(kspace * LINES).mask, LINES)

    def test_mask_does_not_unmask_padding(self, kspace):
        kspace[..., :2] = 0
        scan = Scan.from_arrays(kspace, np.ones(WIDTH, bool))
        assert scan.padding == (2, 0)
        assert scan.mask.tolist() == [False] * 2 + [True] * 15

    def test_recon_size(self, kspace):
        target = np.ones((SLICES, 9, 12))
        assert Scan.from_arrays(kspace).recon_size == (HEIGHT, WIDTH)
        assert Scan.from_arrays(kspace, target=target).recon_size == (9, 12)
        assert Scan.from_arrays(kspace, target=target, recon_size=(4, 5)).recon_size == (4, 5)

    def test_conjugated_tensor(self, kspace):
        scan = Scan.from_arrays(torch.from_numpy(kspace).conj())
        np.testing.assert_array_equal(scan.kspace, kspace.conj())

    def test_index_beyond_the_end(self, kspace):
        scan = Scan.from_arrays(kspace)
        for index in (SLICES, -SLICES - 1):
            with pytest.raises(IndexError):
                scan.read(index)

    def test_repr_is_one_line(self, kspace):
        assert repr(Scan.from_arrays(kspace, name="a")) == "Scan('a', 2 slices, 3 coils, 20 x 17, R=1)"


def test_specifications_are_documented():
    folder = resources.files("mri_ambient.data_specs")
    text = (folder / "README.md").read_text(encoding="utf-8")
    names = sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))
    assert names == ["bart", "calgary", "fastmri", "ismrmrd", "m4raw", "twix"]
    for name in names:
        specification = load_specification(name)
        assert specification.name == name
        for word in [name, *specification.datasets, *specification.attributes]:
            assert f"`{word}`" in text, word
        for dataset in specification.datasets.values():
            assert {axis for axes in dataset.axes for axis in axes} <= {*specification.axes, "item"}
