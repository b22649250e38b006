r"""Where the slices of an acquisition lie, from the headers of its readouts.

A readout comes with the position p of its slice and the directions of readout, phase encoding and slice as unit
vectors, all in LPS millimetres. The position belongs to the centre of the encoded field of view, to which the centred
transform assigns index N // 2. With voxels :math:`\Delta` of the full field of view of H rows and W columns,

.. math:: (l, p, s)^T = p_\text{slice} + s \, \Delta_y (y - \lfloor H/2 \rfloor) \, r
    + s \, \Delta_x (x - \lfloor W/2 \rfloor) \, e ,

with r the direction of the readout, e that of the phase encoding, and s = 1. Siemens states directions for images that
the forward transform makes of k-space; with the inverse transform, which is used here, s = -1 [1]_, [2]_. This has been
taken from others' experience; no scan of a phantom in a known position has confirmed it here.

References
----------
.. [1] https://github.com/PTB-MR/mrpro/pull/833
.. [2] twixtools, module geometry, which reverses both directions in the plane
.. [3] ISMRMRD, https://ismrmrd.readthedocs.io: AcquisitionHeader
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mri_ambient.formats.base import ScanFile
from mri_ambient.volumes import LPS_RAS

_TOLERANCE = 1e-3  # of unit vectors and right angles
_UNEVEN = 0.02  # of the distance of slices


@dataclass(frozen=True, eq=False)
class Directions:
    """Place of one readout of every slice, each (slice, 3) in LPS millimetres.

    Attributes
    ----------
    position : ndarray
        Of the centre of the field of view.
    read, phase, normal : ndarray
        Unit vectors.
    """

    position: NDArray[np.float64]
    read: NDArray[np.float64]
    phase: NDArray[np.float64]
    normal: NDArray[np.float64]


def placed(found: ScanFile, where: Directions, reverse: bool) -> ScanFile:
    """Give a scan the affine that its readouts tell, if they tell one.

    Parameters
    ----------
    found : ScanFile
    where : Directions
        In the order of the slices.
    reverse : bool
        Whether directions are meant for the forward transform.

    Returns
    -------
    ScanFile
        With the attribute ``affine`` from (slice, y, x) of the full field of view to RAS millimetres, as JSON; without
        it if the header has no voxel size, directions are missing, or slices are not parallel and evenly spaced.
    """
    voxel, (slices, _, height, width) = found.header.voxel_size, found.shape
    if voxel is None or not _is_stack(where):
        return found
    sign = -1.0 if reverse else 1.0
    read, phase = sign * where.read[0] * voxel[1], sign * where.phase[0] * voxel[2]
    first = where.position[0]
    step = (where.position[-1] - first) / (slices - 1) if slices > 1 else where.normal[0] * voxel[0]
    corner = first - (height // 2) * read - (width // 2) * phase
    affine = np.eye(4)
    affine[:3] = np.stack([step, read, phase, corner], axis=1)
    text = json.dumps(np.round(LPS_RAS @ affine, 6).tolist())
    return replace(found, attributes={**found.attributes, "affine": text})


def _is_stack(where: Directions) -> bool:
    """Whether these are parallel, evenly spaced slices with directions at right angles."""
    axes = np.stack([where.read, where.phase, where.normal], axis=1)
    everything = np.concatenate([axes.ravel(), where.position.ravel()])
    if not np.isfinite(everything).all() or np.abs(axes - axes[0]).max() > _TOLERANCE:
        return False
    if np.abs(axes[0] @ axes[0].T - np.eye(3)).max() > _TOLERANCE:
        return False
    if len(where.position) == 1:
        return True
    steps = np.diff(where.position, axis=0)
    length = float(np.linalg.norm(steps[0]))
    return bool(length > _TOLERANCE and np.abs(steps - steps[0]).max() <= _UNEVEN * length)
