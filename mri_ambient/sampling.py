"""Which samples of a scan were acquired.

A sample that was acquired carries noise and is never exactly zero, so zeros tell the mask of a file that has none, and
tell zero padding from acquisition in a file that has one. Noise also makes it enough to look at a part of the data:

* The first coil with signal of one slice shows whether whole lines along the readout were sampled.
* If so, some central readout samples of each other slice show which lines (a line is sampled if any of its samples is).
* If not, every sample of every coil is looked at: a position was sampled if any coil is not zero there.

Outer columns that a vendor filled with zeros are *padding*: they were not acquired and no other scan could have
acquired them, so they count neither as sampled nor as skipped. Undersampling and padding look alike; the header tells
them apart. Without one, only zeros that cannot be undersampling are padding: at the edges of an otherwise fully sampled
scan, and where a mask claims that edge columns were acquired.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mri_ambient.errors import InputError
from mri_ambient.operators.arrays import as_tensor

ReadBlock = Callable[[int, int, slice], NDArray[np.complexfloating]]
"""K-space (rows, x) of (slice, coil, rows)."""

_CENTRAL_ROWS = 16
_LINE_FRACTION = 0.99  # of the samples of a line; the rest may be zero, such as a readout's outermost samples


@dataclass(frozen=True)
class Sampling:
    """Mask of a scan, its padding, and what was noticed.

    Attributes
    ----------
    mask : ndarray of bool
        (x,) for lines, (y, x) for other patterns, (slice, 1 or y, x) if slices differ. True = acquired.
    padding : tuple of int
        Zero-padded columns (left, right), where the mask is False.
    notes : tuple of str
        Contradictions between mask, header and data that were resolved, in sentences for the user.
    """

    mask: NDArray[np.bool_]
    padding: tuple[int, int]
    notes: tuple[str, ...] = ()


def detect_samples(read: ReadBlock, shape: tuple[int, int, int, int]) -> NDArray[np.bool_]:
    """Find the acquired samples of every slice from zeros.

    Parameters
    ----------
    read : callable
        ``read(slice, coil, rows)`` gives k-space (rows, x).
    shape : tuple of int
        (slice, coil, y, x).

    Returns
    -------
    ndarray of bool
        (slice, 1, x) for lines or (slice, y, x). All False in a slice without signal.
    """
    slices, coils, height, width = shape
    middle_out = sorted(range(slices), key=lambda index: abs(index - slices // 2))
    planes = (_first_signal(read, index, coils, slice(0, height)) for index in middle_out)
    plane = next((found for found in planes if found.any()), None)
    if plane is None:
        return np.zeros((slices, 1, width), bool)
    if _is_lines(plane):
        return np.stack([_lines(read, index, coils, height) for index in range(slices)])[:, None]
    return np.stack([_any_coil(read, index, coils, height) for index in range(slices)])


def _first_signal(read: ReadBlock, index: int, coils: int, rows: slice) -> NDArray[np.bool_]:
    """Samples (rows, x) of the first coil that is not all zero."""
    for coil in range(coils):
        found = read(index, coil, rows) != 0
        if found.any():
            break
    return found


def _is_lines(plane: NDArray[np.bool_]) -> bool:
    return bool(plane[:, _columns(plane)].mean() >= _LINE_FRACTION)


def _lines(read: ReadBlock, index: int, coils: int, height: int) -> NDArray[np.bool_]:
    start = max(0, (height - _CENTRAL_ROWS) // 2)
    return _columns(_first_signal(read, index, coils, slice(start, min(height, start + _CENTRAL_ROWS))))


def _any_coil(read: ReadBlock, index: int, coils: int, height: int) -> NDArray[np.bool_]:
    found = read(index, 0, slice(0, height)) != 0
    for coil in range(1, coils):
        found |= read(index, coil, slice(0, height)) != 0
    return found


def resolve_sampling(
    detected: NDArray[np.bool_],
    given: NDArray[np.bool_] | None = None,
    declared: tuple[int, int] | None = None,
) -> Sampling:
    """Combine what the data, the mask of the file and its header say.

    Parameters
    ----------
    detected : ndarray of bool
        From `detect_samples`.
    given : ndarray of bool, optional
        Mask of the file, (x,), (y, x) or (slice, 1 or y, x).
    declared : tuple of int, optional
        Padding (left, right) according to the header. Columns of it that hold samples are not padding.

    Returns
    -------
    Sampling
        Mask and padding. Columns that are zero in all slices are never acquired, whatever the mask says.

    Raises
    ------
    InputError
        If there is no signal, or none where the mask is True.

    Notes
    -----
    Where slices differ, a slice without signal gets every position that another slice has: its samples are zeros.
    """
    blank: NDArray[np.bool_] = ~np.any(detected, axis=(1, 2))
    signal = detected[~blank]
    if blank.all():
        raise InputError("K-space is zero everywhere: export the scan again.")
    columns = _columns(signal)
    padding = _padding(signal, columns, given, declared)
    notes = []
    if declared is not None and padding != declared:
        notes.append(f"The header declares {declared} padded columns, of which only {padding} are zero.")
    if given is None:
        mask = collapse_mask(np.where(blank[:, None, None], np.any(signal, axis=0), detected))
    else:
        mask = collapse_mask(given & columns)
        inside = slice(padding[0], len(columns) - padding[1])
        missing = int(np.count_nonzero(_columns(given)[inside] & ~columns[inside]))
        if missing:
            notes.append(
                f"The mask marks {missing} columns as acquired that hold zeros in all slices; they are not used."
            )
    if not mask.any():
        raise InputError("The mask has no acquired sample: store 1 where a sample was acquired.")
    return Sampling(mask, padding, tuple(notes))


def _padding(
    signal: NDArray[np.bool_],
    columns: NDArray[np.bool_],
    given: NDArray[np.bool_] | None,
    declared: tuple[int, int] | None,
) -> tuple[int, int]:
    width = len(columns)
    left, right = int(columns.argmax()), int(columns[::-1].argmax())  # zero columns at either edge
    if declared is not None:
        return min(left, declared[0]), min(right, declared[1])
    if given is None:
        full = signal[:, :, left : width - right].all()
        return (left, right) if full else (0, 0)
    claimed = _columns(given)
    return _last_true(claimed[:left]), _last_true(claimed[::-1][:right])


def _columns(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Columns (x,) of (..., x) with any sample."""
    found: NDArray[np.bool_] = np.any(mask.reshape(-1, mask.shape[-1]), axis=0)
    return found


def _last_true(values: NDArray[np.bool_]) -> int:
    """One more than the index of the last True, 0 if there is none."""
    return int(np.flatnonzero(values).max(initial=-1)) + 1


def fitting_mask(mask: Tensor | NDArray, shape: tuple[int, int, int, int]) -> NDArray[np.bool_]:
    """A mask as bool array (x,), (y, x) or (slice, 1 or y, x); raise InputError unless it fits (slice, coil, y, x)."""
    values = as_tensor(mask).detach().cpu().numpy()
    slices, _, height, width = shape
    allowed = {(width,), (1, width), (height, width), (slices, 1, width), (slices, height, width)}
    if values.shape not in allowed:
        raise InputError(
            f"A mask of shape {values.shape} does not fit k-space of {height} x {width}: pass ({width},) or "
            f"({height}, {width})."
        )
    if not ((values == 0) | (values == 1)).all():
        raise InputError("The mask holds other values than zeros and ones: pass True where a sample was acquired.")
    return values.astype(bool)


def collapse_mask(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The smallest of the shapes (x,), (y, x), (slice, 1, x), (slice, y, x) that says the same."""
    if mask.ndim == 3 and (mask == mask[0]).all():
        mask = mask[0]
    if mask.ndim > 1 and (mask == mask[..., :1, :]).all():
        mask = mask[..., :1, :]
    return mask[0] if mask.ndim == 2 and len(mask) == 1 else mask
