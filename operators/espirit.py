r"""Coil sensitivity maps from the fully sampled centre of k-space: ESPIRiT, with one set of maps or several.

Every ``kernel x kernel`` window of multi-coil k-space lies close to a low-dimensional space. The windows of the
calibration region are the rows of a matrix :math:`A = U \Sigma V^H`; the right singular vectors with
:math:`\sigma > threshold \cdot \sigma_{max}` span that space. Let :math:`v_k[c, s]` be these rows of :math:`V^H` and
:math:`\hat v_k[c](r) = \sum_s v_k[c, s] e^{2 \pi i s r / N}`. That all windows of the data lie in the space means, in
the image domain, that the vector of coil sensitivities at pixel *r* is an eigenvector with eigenvalue one of

.. math:: G(r) = kernel^{-2} \sum_k \hat v_k(r) \hat v_k(r)^H  \qquad (coil \times coil, \; 0 \le G \le 1).

The map is the dominant eigenvector. Where its eigenvalue is not above `crop` there is no object; the map is zero there.
Where two parts of the object lie on top of each other, a second eigenvalue is near one; its eigenvector is the map of
the second set, found by the same iteration after :math:`G \leftarrow G - \lambda S S^H`. The eigenvalue reaches one
only where the overlap is about as wide as a window of k-space resolves, ``N / kernel`` pixels.

Three properties make this fast without approximating it:

1. The singular vectors follow from the Gram matrix of the smaller side of *A* (in double precision).
2. :math:`G(r)` is a trigonometric polynomial of degree ``kernel - 1`` in each direction. Its ``(2 kernel - 1)^2``
   coefficients, the autocorrelation of the kernels, are computed once; no image-sized array is formed per kernel, and
   any block of pixels is evaluated by two small matrix products. Memory is one block, whatever the matrix size.
3. Four squarings give :math:`G^{16}`, so that one step of power iteration does the work of sixteen. Pixels whose
   Frobenius norm, an upper bound of the eigenvalue, is not above `crop` need no iteration; the few with two nearly
   equal eigenvalues go to a full decomposition.

Gauge. A map is defined up to one phase a pixel. Here the phase is such that the sensitivity of a fixed virtual coil is
real and not negative: the strongest combination *u* of the coils in the calibration data (dominant eigenvector of their
covariance, its largest entry made positive), :math:`u^H S(r) \ge 0`. The maps are smooth wherever that coil sees the
object, and independent of the order of the coils. Where two eigenvalues are nearly equal, only the space that the maps
of the sets span has a meaning.

Few lines. Samples that are zero in every coil were not acquired; windows that contain one are not calibration data.
With 13 lines of a 24-line region, the windows that remain give about half the error of the 13 x 13 square, and without
this rule the missing lines would be fitted as if they were signal. A kernel that is large compared with the number of
lines leaves too few windows to span the space: the eigenvalue then falls below `crop` inside the object. By default the
kernel is therefore at most half as wide as the region.

References
----------
Uecker, Lai, Murphy, Virtue, Elad, Pauly, Vasanawala, Lustig: ESPIRiT, an eigenvalue approach to autocalibrating
parallel MRI: where SENSE meets GRAPPA. Magn. Reson. Med. 71 (2014) 990-1001.
"""

import math
from typing import Any

import torch
from torch import Tensor

from .arrays import as_complex, eigh

BLOCK_BYTES = 16 * 2**20  # of coil x coil matrices held at a time; a few such blocks are alive at once
SQUARINGS = 4
STEPS = 4
RATIO = 0.25  # of the second eigenvalue of G^16 to the first, from which on power iteration is not trusted


@torch.no_grad()
def espirit(
    kspace: Any,
    acs: int = 24,
    backend: str = "torch",
    *,
    kernel: int | None = None,
    threshold: float = 0.02,
    crop: float = 0.95,
    sets: int = 1,
) -> Tensor:
    """Estimate coil sensitivity maps from the centre of k-space.

    Only the central ``acs x acs`` samples are looked at, so that `kspace` may be undersampled outside. Samples that are
    zero in every coil count as not acquired: the torch backend leaves out the windows that contain one, hence makes the
    most of a centre with fewer than `acs` lines; the SigPy backend takes the largest complete square about the centre.

    Parameters
    ----------
    kspace : array (coil, y, x) or (slice, coil, y, x)
        Centred k-space, any unit, NumPy or torch, on any device. Slices are calibrated independently.
    acs : int
        Side of the calibration region in samples; less is used where the matrix is smaller.
    backend : {"torch", "sigpy"}
        The fast implementation, or SigPy's ``EspiritCalib`` (on the CPU) as reference.
    kernel : int, optional
        Side of the k-space windows in samples. By default 6, or half the number of calibration lines (at least 3) where
        there are fewer than 12.
    threshold : float
        Singular values below this fraction of the largest are treated as noise.
    crop : float
        Maps are zero where the eigenvalue does not exceed this.
    sets : int
        Number of eigenvectors a pixel, each with its own eigenvalue; more than one with the torch backend only.

    Returns
    -------
    Tensor, complex64, same shape and device as `kspace`
        With several sets (set, coil, y, x) or (slice, set, coil, y, x), orthonormal over coils. The sum over coils of
        the squared modulus is 1 on the support and 0 outside. The phase is such that the virtual coil that is strongest
        in the calibration data is real and positive. With one coil the map is the support. A slice that is zero
        altogether has maps of zeros.

    Raises
    ------
    ValueError
        If the shape or a parameter is unusable, the data are not finite, or a slice has fewer than ``kernel + 2``
        adjacent calibration lines in some direction.

    References
    ----------
    Uecker et al., Magn. Reson. Med. 71 (2014) 990-1001.

    Examples
    --------
    >>> import torch
    >>> maps = espirit(torch.randn(4, 32, 32, dtype=torch.complex64), crop=0.0)
    >>> bool((maps.abs().square().sum(0) - 1).abs().max() < 1e-5)
    True
    """
    kspace = as_complex(kspace).to(torch.complex64)
    _check_arguments(tuple(kspace.shape), acs, backend, kernel, threshold, crop, sets)
    acs = min(acs, *kspace.shape[-2:])
    volume = kspace if kspace.ndim == 4 else kspace[None]
    maps = kspace.new_zeros(len(volume), sets, *volume.shape[1:])
    for data, out in zip(volume, maps, strict=True):
        block = _center(data, acs)
        if not bool(torch.isfinite(torch.view_as_real(block)).all()):
            raise ValueError("the calibration region of k-space contains values that are not finite.")
        if bool((data != 0).any()):
            side = _kernel_side(block, kernel)
            if backend == "sigpy":
                found = _sigpy_maps(data, acs, side, threshold, crop)[None]
            else:
                found = _torch_maps(data, acs, side, threshold, crop, sets)
            out.copy_(torch.stack([_fix_phase(one, block) for one in found]))
    maps = maps if sets > 1 else maps[:, 0]
    return maps if kspace.ndim == 4 else maps[0]


def _check_arguments(
    shape: tuple[int, ...], acs: int, backend: str, kernel: int | None, threshold: float, crop: float, sets: int
) -> None:
    if len(shape) not in (3, 4) or 0 in shape[-3:]:
        raise ValueError(f"k-space must be (coil, y, x) or (slice, coil, y, x) and not empty, got shape {shape}.")
    if backend not in ("torch", "sigpy"):
        raise ValueError(f"backend must be 'torch' or 'sigpy', got {backend!r}.")
    if acs < 1 or (kernel is not None and kernel < 1):
        raise ValueError(f"acs and kernel must be positive, got {acs} and {kernel}.")
    if not 0 <= threshold < 1 or not 0 <= crop < 1:
        raise ValueError(f"threshold and crop must lie in [0, 1), got {threshold} and {crop}.")
    if not 1 <= sets <= shape[-3] or (sets > 1 and backend == "sigpy"):
        raise ValueError(f"sets must be between 1 and the number of coils, and 1 with SigPy, got {sets}.")


def _kernel_side(block: Tensor, kernel: int | None) -> int:
    """Side of the windows: as asked for, or as large as the calibration lines of the block support."""
    lines = block.shape[-1]
    while lines and not bool(_complete_windows(block, lines).any()):
        lines -= 1
    side = min(6, max(3, lines // 2)) if kernel is None else kernel
    if lines < side + 2:
        raise ValueError(
            f"ESPIRiT with a {side} x {side} kernel needs at least {side + 2} adjacent calibration lines in both "
            f"directions, but the central {block.shape[-2]} x {block.shape[-1]} samples of k-space hold {lines}."
        )
    return side


def _complete_windows(block: Tensor, side: int) -> Tensor:
    """Where (y - side + 1, x - side + 1) a window of the block (coil, y, x) has all its samples, as bool."""
    return (block != 0).any(0).unfold(0, side, 1).unfold(1, side, 1).all(-1).all(-1)


def _center(x: Tensor, side: int) -> Tensor:
    top, left = (n // 2 - side // 2 for n in x.shape[-2:])
    return x[..., top : top + side, left : left + side]


def _fix_phase(maps: Tensor, block: Tensor) -> Tensor:
    """Turn each pixel's phase so that the strongest virtual coil of the calibration data is real and positive."""
    samples = block.flatten(1).to(torch.complex128)
    u = eigh(samples @ samples.mH)[1][:, -1]
    u = u * torch.exp(-1j * u[u.abs().argmax()].angle())
    virtual = torch.tensordot(u.conj().to(maps.dtype), maps, 1)
    return maps * torch.polar(torch.ones_like(virtual.real), -virtual.angle())


# ---- torch backend -------------------------------------------------------------------------------------------------


def _torch_maps(kspace: Tensor, acs: int, kernel: int, threshold: float, crop: float, sets: int) -> Tensor:
    """Maps (set, coil, y, x) of one slice, in an arbitrary gauge."""
    kernels = _signal_kernels(_center(kspace, acs), kernel, threshold)
    coefficients = _polynomial(kernels)
    coils, ny, nx = kspace.shape
    waves_y, waves_x = (_waves(n, kernel, kspace.device) for n in (ny, nx))
    maps = torch.empty(sets, ny, nx, coils, dtype=torch.complex64, device=kspace.device)
    rows = max(1, BLOCK_BYTES // (8 * coils**2 * nx))
    for start in range(0, ny, rows):
        part = torch.tensordot(waves_y[start : start + rows], coefficients, 1)
        matrices = (waves_x @ part).view(-1, coils, coils)
        for out in maps[:, start : start + rows]:
            again = matrices.clone() if sets > 1 else matrices  # the search overwrites what it is given
            vectors = _dominant_eigenvectors(again, crop)
            out.copy_(vectors.view(-1, nx, coils))
            if sets > 1:
                value = (vectors.conj() * (matrices @ vectors[..., None])[..., 0]).sum(-1).real
                matrices -= value[:, None, None] * vectors[:, :, None] * vectors.conj()[:, None, :]
    return maps.permute(0, 3, 1, 2)


def _signal_kernels(block: Tensor, kernel: int, threshold: float) -> Tensor:
    """Orthonormal basis (basis, coil, kernel, kernel), complex128, of the windows of the calibration block."""
    windows = block.unfold(1, kernel, 1).unfold(2, kernel, 1)[:, _complete_windows(block, kernel)].transpose(0, 1)
    matrix = windows.flatten(1).to(torch.complex128)
    wide = matrix.shape[0] < matrix.shape[1]
    energy, vectors = eigh(matrix @ matrix.mH if wide else matrix.mH @ matrix)
    keep = energy > max(threshold**2, 1e-12) * energy[-1]  # below 1e-12 the Gram matrix holds only rounding
    basis = vectors[:, keep].mH
    if wide:
        basis = (basis @ matrix) / energy[keep].sqrt()[:, None]
    return basis.view(-1, *windows.shape[1:])


def _polynomial(kernels: Tensor) -> Tensor:
    """Coefficients (2 kernel - 1, 2 kernel - 1, coil * coil) of G(r), offsets in FFT order.

    As many values on a grid as there are coefficients determine the polynomial: transform, multiply, transform back.
    """
    kernel = kernels.shape[-1]
    grid = 2 * kernel - 1
    values = torch.fft.ifft2(kernels, s=(grid, grid), norm="forward").permute(2, 3, 1, 0)
    coefficients = torch.fft.fft2(values @ values.mH, dim=(0, 1), norm="forward") / kernel**2
    return coefficients.flatten(2).to(torch.complex64)


def _waves(length: int, kernel: int, device: torch.device) -> Tensor:
    """Complex exponentials (length, 2 kernel - 1) of a centred axis, offsets in FFT order."""
    offsets = torch.cat([torch.arange(kernel), torch.arange(1 - kernel, 0)])
    turns = (torch.arange(length) - length // 2)[:, None] * offsets
    angle = (2 * math.pi / length) * turns.to(torch.float64)
    return torch.polar(torch.ones_like(angle), angle).to(device=device, dtype=torch.complex64)


def _dominant_eigenvectors(matrices: Tensor, crop: float) -> Tensor:
    """Unit eigenvectors (pixel, coil) of the largest eigenvalue; zero where that does not exceed `crop`."""
    result = matrices.new_zeros(matrices.shape[:2])
    bound = _norm(matrices.flatten(1))
    candidates = bound > crop
    bound = bound[candidates]
    power = matrices[candidates].mul_(bound.reciprocal()[:, None, None])  # keeps the squares away from underflow
    spare = matrices.flatten()[: power.numel()].view_as(power)  # fresh memory costs as much as the product
    for _ in range(SQUARINGS):
        power, spare = torch.bmm(power, power, out=spare), power
    # The strongest column has at least the share 1 / coils of the dominant eigenvector, whatever that vector is.
    column = power.diagonal(dim1=-2, dim2=-1).real.argmax(-1)
    x = _unit(power.take_along_dim(column[:, None, None], -1)[..., 0])
    for _ in range(STEPS):
        product = (power @ x[..., None])[..., 0]
        x = _unit(product)
    value, energy = _norm(product), _norm(power.flatten(1))
    # The Frobenius norm holds all eigenvalues, so what x leaves of it bounds the second, even if x is the wrong vector.
    slow = (energy > math.hypot(1, RATIO) * value) & (bound * energy ** (1 / 2**SQUARINGS) > crop)
    if bool(slow.any()):
        values, vectors = eigh(power[slow])
        value[slow], x[slow] = values[:, -1], vectors[..., -1]
    eigenvalue = bound * value ** (1 / 2**SQUARINGS)
    result[candidates] = x * (eigenvalue > crop)[:, None]
    return result


def _norm(x: Tensor) -> Tensor:
    """Euclidean norm over the last axis, of real numbers: PyTorch's norm of complex ones is many times slower."""
    return torch.linalg.vector_norm(torch.view_as_real(x).flatten(-2), dim=-1)


def _unit(x: Tensor) -> Tensor:
    return x * _norm(x).reciprocal()[:, None]


# ---- SigPy backend -------------------------------------------------------------------------------------------------


def _sigpy_maps(kspace: Tensor, acs: int, kernel: int, threshold: float, crop: float) -> Tensor:
    """Maps (coil, y, x) of one slice by SigPy, which knows only square calibration regions."""
    from sigpy.mri.app import EspiritCalib

    while not bool((_center(kspace, acs) != 0).any(0).all()):
        acs -= 1
        if acs < kernel + 2:
            raise ValueError(
                f"SigPy's ESPIRiT with a {kernel} x {kernel} kernel needs a complete square of at least {kernel + 2} x "
                f"{kernel + 2} samples about the centre of k-space."
            )
    app = EspiritCalib(
        kspace.numpy(force=True), calib_width=acs, thresh=threshold, kernel_width=kernel, crop=crop, show_pbar=False
    )
    return torch.as_tensor(app.run(), dtype=torch.complex64, device=kspace.device)
