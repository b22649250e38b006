"""Pictures in a page, against independent readers: a decoder written from the description, and an imaging library."""

import base64
import zlib
from io import BytesIO

import numpy as np
import pytest
from matplotlib.image import imread

from mri_ambient.recon.pictures import coil_picture, edges, encode, gray_png, mask_picture


def decoded(text: str, shape: tuple[int, int]) -> np.ndarray:
    """Whole numbers of a picture, one after the other, as the module describes it."""
    low, high = np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8).reshape(2, *shape).astype(int)
    folded, codes = low + 256 * high, np.zeros(shape, int)
    for y in range(shape[0]):
        for x in range(shape[1]):
            left, above = codes[y, x - 1] if x else 0, codes[y - 1, x] if y else 0
            odd, half = folded[y, x] % 2, folded[y, x] // 2
            codes[y, x] = (left + above) // 2 + (-half - 1 if odd else half)
    return codes


@pytest.mark.parametrize(("levels", "power"), [(511, 1.0), (255, 1.0), (63, 2.0)])
@pytest.mark.parametrize("scale", [1e-7, 1.0, 1e4])
def test_a_slice_comes_back_to_within_half_a_step(levels, power, scale):
    image = scale * np.random.default_rng(0).gamma(1.0, size=(13, 9)).astype(np.float32)
    text, peak = encode(image, levels, power)
    codes = decoded(text, image.shape)
    assert peak == pytest.approx(image.max())
    np.testing.assert_allclose((codes / levels), (image / image.max()) ** (1 / power), atol=0.501 / levels)
    assert codes.max() == levels


def test_an_image_of_zeros():
    text, peak = encode(np.zeros((3, 4)), 511, 1.0)
    assert peak == 1
    assert not decoded(text, (3, 4)).any()


def picture(uri: str) -> np.ndarray:
    return imread(BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,"))), format="png")


def test_png_is_read_by_another_library():
    image = np.linspace(-0.1, 1.1, 35).reshape(5, 7)
    image[2, 3] = np.nan
    found = imread(BytesIO(gray_png(image)), format="png")
    np.testing.assert_allclose(found, np.clip(np.nan_to_num(image), 0, 1), atol=0.51 / 255)


class TestMask:
    def test_lines_fill_the_height(self):
        mask = np.array([True, False, False, True, True, False])
        shown = mask_picture(mask, 4, 0)
        np.testing.assert_array_equal(picture(shown.source), np.tile(mask, (4, 1)))
        assert shown.text == "3 of 6 phase-encoding lines (white), 1 in the centre."

    def test_of_slices_that_differ_the_one_that_is_named(self):
        masks = np.zeros((2, 1, 6), bool)
        masks[1, 0, 2:4] = True
        shown = mask_picture(masks, 3, 1)
        np.testing.assert_array_equal(picture(shown.source), np.tile(masks[1], (3, 1)))
        assert shown.text.endswith("Slice 1.")

    def test_samples(self):
        mask = np.random.default_rng(0).random((6, 8)) < 0.4
        shown = mask_picture(mask, 6, 0)
        np.testing.assert_array_equal(picture(shown.source), mask)
        assert f"{mask.mean():.1%} of all samples" in shown.text


def test_coil_maps_side_by_side_on_one_scale():
    maps = np.arange(1, 4)[:, None, None] * np.ones((3, 5, 4))
    grid = picture(coil_picture(maps, 0).source)
    np.testing.assert_allclose(grid, np.repeat([1 / 3, 2 / 3, 1], 4)[None].repeat(5, 0), atol=0.01)


def test_many_large_maps_are_made_smaller():
    grid = picture(coil_picture(np.ones((32, 400, 256)), 0).source)
    assert grid.size < 32 * 128 * 128 * 1.2


def test_letters_at_the_edges():
    right_to_left = np.array([[0, 0, -1, 90], [0, -1, 0, 80], [3, 0, 0, -20], [0, 0, 0, 1.0]])  # radiological axial
    assert edges(right_to_left) == {"top": "A", "bottom": "P", "left": "R", "right": "L"}
    sagittal = np.array([[2, 0.1, 0, 0], [0, 0, -1, 0], [0, -1, 0.1, 0], [0, 0, 0, 1.0]])
    assert edges(sagittal) == {"top": "S", "bottom": "I", "left": "A", "right": "P"}
    assert edges(None) is None
