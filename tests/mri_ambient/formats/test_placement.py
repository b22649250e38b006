"""Affines from the headers of readouts; that images really lie there is shown in recon/test_orientation.py."""

import json

import numpy as np
import pytest
from orientation import rotation
from raw_files import coil_images, fft2c, header, lines_of, twix_block, write_ismrmrd, write_twix

from mri_ambient.formats.placement import Directions
from mri_ambient.header import parse_header
from mri_ambient.scan import load_scan

SLICES, COILS, HEIGHT, WIDTH = SHAPE = (3, 2, 20, 17)
AXES = rotation(15, -25, 40)  # readout, phase encoding, slice as columns
FIRST, GAP = np.array([3.0, -20.0, 35.0]), 7.0


def stack() -> Directions:
    position = FIRST + np.arange(SLICES)[:, None] * GAP * AXES[:, 2]
    return Directions(position, *(np.tile(axis, (SLICES, 1)) for axis in AXES.T))


def load(folder, where: Directions, vendor: str | None = None, xml: str = ""):
    pytest.importorskip("ismrmrd", reason="the ismrmrd library, an independent writer, is not installed")
    kspace = fft2c(coil_images(*SHAPE))
    acquisitions = []
    for index in range(SLICES):
        names = ("position", "read_dir", "phase_dir", "slice_dir")
        values = (where.position, where.read, where.phase, where.normal)
        place = {name: tuple(value[index]) for name, value in zip(names, values, strict=True)}
        for line in lines_of(kspace[index : index + 1], **place):
            line.idx.slice = index
            acquisitions.append(line)
    text = xml or header(HEIGHT, WIDTH)
    if vendor:
        start = "<acquisitionSystemInformation>"
        text = text.replace(start, f"{start}<systemVendor>{vendor}</systemVendor>")
    return load_scan(write_ismrmrd(folder / "a.h5", text, acquisitions))


def affine_of(scan) -> np.ndarray:
    return np.diag([-1.0, -1, 1, 1]) @ np.array(json.loads(scan.attributes["affine"]))


@pytest.mark.parametrize(("vendor", "sign"), [(None, 1), ("GE", 1), ("SIEMENS", -1), ("Siemens Healthineers", -1)])
def test_centre_and_steps(tmp_path, vendor, sign):
    """Index N // 2 is the position of the slice; Siemens' directions are those of the forward transform."""
    affine = affine_of(load(tmp_path, stack(), vendor))
    np.testing.assert_allclose((affine @ [0, HEIGHT // 2, WIDTH // 2, 1])[:3], FIRST, atol=1e-4)
    np.testing.assert_allclose((affine @ [2, HEIGHT // 2, WIDTH // 2, 1])[:3], FIRST + 2 * GAP * AXES[:, 2], atol=1e-4)
    np.testing.assert_allclose(affine[:3, 1], sign * 1.0 * AXES[:, 0], atol=1e-4)
    np.testing.assert_allclose(affine[:3, 2], sign * 200 / WIDTH * AXES[:, 1], atol=1e-4)


def moved(name: str, index: int, value: np.ndarray) -> Directions:
    where = stack()
    getattr(where, name)[index] = value
    return where


@pytest.mark.parametrize(
    "where",
    [
        Directions(*np.zeros((4, SLICES, 3))),  # never filled in
        moved("position", 1, FIRST),  # twice the same place
        moved("position", 2, FIRST + 2.2 * GAP * AXES[:, 2]),  # uneven
        moved("position", 2, FIRST + 2 * GAP * AXES[:, 2] + AXES[:, 0]),  # not on a line
        moved("normal", 1, AXES[:, 0]),  # not parallel
        moved("read", slice(None), AXES[:, 1]),  # not at right angles
        moved("phase", slice(None), 2 * AXES[:, 1]),  # not of length 1
        moved("position", 0, [np.nan, 0, 0]),
        moved("read", slice(None), [np.inf, 0, 0]),
    ],
)
def test_what_is_no_stack_has_no_affine(tmp_path, where):
    assert "affine" not in load(tmp_path, where).attributes


def test_without_fields_of_view_there_is_no_affine(tmp_path):
    xml = header(HEIGHT, WIDTH).replace("fieldOfView_mm", "somethingElse")
    assert "affine" not in load(tmp_path, stack(), xml=xml).attributes


def test_voxels_are_those_that_were_encoded():
    """A final matrix that the vendor interpolated to says nothing about the voxels of k-space."""
    plain = header(48, 20, oversampling=2)
    first, rest = plain.split("</encodedSpace>")
    interpolated = first + "</encodedSpace>" + rest.replace("<x>24</x><y>20</y>", "<x>48</x><y>40</y>", 1)
    assert parse_header(plain).voxel_size == (5, 1, 10)
    assert parse_header(interpolated).voxel_size == (5, 1, 10)
    assert parse_header(interpolated).recon_size == (48, 40)


class TestTwix:
    def load(self, folder, quaternion, positions):
        kspace = fft2c(coil_images(len(positions), COILS, 2 * HEIGHT, WIDTH, margin=HEIGHT // 2))
        blocks = []
        for index, place in enumerate(positions):
            for column in range(WIDTH):
                block = twix_block(kspace[index, :, :, column], Lin=column, Sli=index, middle=WIDTH // 2)
                block.mdh.SliceData.Quaternion[:] = quaternion
                for name, value in zip(("Sag", "Cor", "Tra"), place, strict=True):
                    setattr(block.mdh.SliceData.SlicePos, name, value)
                blocks.append(block)
        return load_scan(write_twix(folder / "meas.dat", [blocks], rows=HEIGHT, columns=WIDTH))

    @pytest.mark.parametrize("slices", [1, 3])
    def test_centre_and_steps(self, tmp_path, slices):
        geometry = pytest.importorskip("twixtools.geometry", reason="the extra twix is not installed")
        quaternion = np.array([0.9, 0.2, -0.3, 0.1])
        quaternion /= np.linalg.norm(quaternion)
        phase, read, normal = geometry.quat_to_rotmat(*quaternion).T
        affine = affine_of(self.load(tmp_path, quaternion, FIRST + np.arange(slices)[:, None] * GAP * normal))
        np.testing.assert_allclose((affine @ [0, HEIGHT // 2, WIDTH // 2, 1])[:3], FIRST, atol=1e-4)
        np.testing.assert_allclose(affine[:3, 0], (GAP if slices > 1 else 5) * normal, atol=1e-4)
        np.testing.assert_allclose(affine[:3, 1], -220 / HEIGHT * read, atol=1e-4)
        np.testing.assert_allclose(affine[:3, 2], -200 / WIDTH * phase, atol=1e-4)

    def test_quaternions_that_were_not_filled_in(self, tmp_path):
        pytest.importorskip("twixtools", reason="the extra twix is not installed")
        assert "affine" not in self.load(tmp_path, np.zeros(4), FIRST[None]).attributes
