"""Pictures for a page: slices as compressed numbers, everything else as PNG.

*Slices* are stored as whole numbers c from 0 to L, with ``value = peak * (c / L) ** power``, where `peak` is the
maximum of the slice. What is written is the difference of each number from the mean of those left of and above it:
first the low bytes of all, then the high bytes, compressed (deflate) and in base64. ``templates/viewer.js`` reads it.
"""

import base64
import math
import struct
import zlib
from typing import NamedTuple

import numpy as np

from mri_ambient.operators.splitting import acs_width

MONTAGE_SIDE = 128  # pixels of a coil sensitivity map


def encode(image: np.ndarray, levels: int, power: float) -> tuple[str, float]:
    """A picture (y, x) of numbers that are not negative as text, and its peak."""
    peak = float(image.max()) or 1.0
    codes = np.rint(levels * (np.clip(image, 0, None) / peak) ** (1 / power)).astype(np.int32)
    left, above = np.zeros_like(codes), np.zeros_like(codes)
    left[:, 1:], above[1:] = codes[:, :-1], codes[:-1]
    change = codes - (left + above) // 2
    folded = np.where(change < 0, -2 * change - 1, 2 * change)  # small numbers for small changes of either sign
    planes = np.stack((folded & 255, folded >> 8)).astype(np.uint8)
    compressor = zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS, 9, zlib.Z_FILTERED)
    return base64.b64encode(compressor.compress(planes.tobytes()) + compressor.flush()).decode(), peak


def data_uri(png: bytes) -> str:
    """A PNG file as the address of an ``img``."""
    return "data:image/png;base64," + base64.b64encode(png).decode()


def gray_png(image: np.ndarray) -> bytes:
    """A PNG file of an image (y, x) of numbers from 0 (black) to 1 (white), 8 bits a pixel."""
    height, width = image.shape
    rows = np.zeros((height, width + 1), np.uint8)  # each row after its filter, none
    rows[:, 1:] = np.rint(255 * np.clip(np.nan_to_num(image), 0, 1))

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(rows.tobytes(), 9))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


def edges(affine: np.ndarray | None) -> dict[str, str] | None:
    """The letters of the patient's directions at the edges of the image; None if the orientation is not known."""
    if affine is None:
        return None

    def letter(direction: np.ndarray) -> str:
        axis = int(np.abs(direction).argmax())
        return ("LPI", "RAS")[int(direction[axis] > 0)][axis]

    down, right = affine[:3, 1], affine[:3, 2]
    return {"top": letter(-down), "bottom": letter(down), "left": letter(-right), "right": letter(right)}


class Picture(NamedTuple):
    """An image of the page, and what is said about it."""

    source: str
    text: str


def mask_picture(mask: np.ndarray, height: int, index: int) -> Picture:
    """A sampling mask (x,), (y, x) or (slice, 1 or y, x), of which slice `index` is drawn; lines are `height` long."""
    differ = mask.ndim == 3
    own = mask[index] if differ else np.atleast_2d(mask)
    if bool((own == own[:1]).all()):
        own, centre = own[:1], acs_width(own[0])
        text = f"{int(own.sum())} of {own.shape[1]} phase-encoding lines (white), {centre} in the centre."
    else:
        centre = acs_width(own)
        text = f"{own.mean():.1%} of all samples (white), {centre} x {centre} in the centre."
    shown = np.broadcast_to(own, (max(height, len(own)), own.shape[1]))
    return Picture(data_uri(gray_png(shown.astype(np.float32))), text + (f" Slice {index}." if differ else ""))


def coil_picture(maps: np.ndarray, index: int) -> Picture:
    """Magnitudes (coil, y, x) of the maps of slice `index` side by side, on one scale."""
    maps = maps.reshape(-1, *maps.shape[-2:])
    step = max(1, math.ceil(max(maps.shape[1:]) / MONTAGE_SIDE))
    small = maps[:, ::step, ::step]
    count, height, width = small.shape
    columns = min(count, max(1, round(math.sqrt(2 * count * height / width))))
    rows = math.ceil(count / columns)
    grid = np.zeros((rows * columns, height, width), np.float32)
    grid[:count] = small / (float(small.max()) or 1.0)
    grid = grid.reshape(rows, columns, height, width).swapaxes(1, 2).reshape(rows * height, columns * width)
    return Picture(data_uri(gray_png(grid)), f"magnitudes of {count} maps of slice {index}.")


def colours() -> str:
    """The 256 colours of standard deviations, three bytes each, in base64."""
    from matplotlib import colormaps

    table = (255 * colormaps["inferno"](np.arange(256))[:, :3]).round().astype(np.uint8)
    return base64.b64encode(table.tobytes()).decode()
