r"""The multi-coil forward model :math:`A = M F S` of Cartesian MRI.

With maps normalised to :math:`\sum_c |S_c|^2 = 1` on the support, ``F S`` is an isometry and ``||A|| <= 1``.

Speed. A centred FFT is a plain FFT between two unit-modulus factors (`fourier.centring`). The inner factor is
multiplied into the sensitivity maps once; the outer one cancels in ``A^H A = S^H F^H M F S`` because the mask is
diagonal. When the mask depends on the phase-encode index alone, the transform along the readout cancels too, so that
the normal operator needs 1-D transforms only.
"""

from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from .arrays import as_complex, as_mask
from .fourier import centring


class Sense:
    """Multi-coil Cartesian MRI: image -> sensitivity maps -> centred orthonormal FFT -> sampling mask.

    Immutable; a new mask makes a new operator (`with_mask`). Differentiable in its argument, and works on batches.

    Parameters
    ----------
    sensitivity_maps : array (coil, y, x) or (batch, coil, y, x)
        Complex maps, usually normalised to a root sum of squares of 1 on the support.
    mask : array (x,), (y, x) or (batch, 1 or y, x)
        True (non-zero) where k-space was acquired.

    Attributes
    ----------
    image_shape : tuple
        ``(y, x)``, or ``(batch, y, x)`` when maps or mask carry a batch axis.
    kspace_shape : tuple
        The same with the coil axis in front of ``y``.

    Raises
    ------
    ValueError
        If shapes do not fit each other, here or in a call.

    References
    ----------
    K. P. Pruessmann et al., SENSE: sensitivity encoding for fast MRI, Magn. Reson. Med. 42 (1999) 952-962.
    """

    def __init__(self, sensitivity_maps: Any, mask: Any) -> None:
        maps, mask = as_complex(sensitivity_maps), as_mask(mask)
        if maps.ndim not in (3, 4):
            raise ValueError(f"sensitivity maps must be (coil, y, x) or (batch, coil, y, x), not {tuple(maps.shape)}")
        if mask.ndim == 1:
            mask = mask[None]
        ny, nx = maps.shape[-2:]
        if mask.ndim not in (2, 3) or mask.shape[-1] != nx or mask.shape[-2] not in (1, ny):
            raise ValueError(f"a mask of shape {tuple(mask.shape)} does not fit sensitivity maps of {ny} x {nx}")
        batches = {n for n in (maps.shape[0] if maps.ndim == 4 else 1, mask.shape[0] if mask.ndim == 3 else 1) if n > 1}
        if len(batches) > 1:
            raise ValueError(f"{maps.shape[0]} sets of maps and {mask.shape[0]} masks cannot be combined")
        self.sensitivity_maps = maps
        self.mask = mask.to(maps.device)
        batched = maps.ndim == 4 or mask.ndim == 3
        batch = (max(batches, default=1),) if batched else ()
        self.image_shape: tuple[int, ...] = (*batch, ny, nx)
        self.kspace_shape: tuple[int, ...] = (*batch, maps.shape[-3], ny, nx)

    def __repr__(self) -> str:
        kind = "line" if self.is_line_mask else "2-D"
        return f"Sense({self.image_shape} -> {self.kspace_shape}, {kind} mask, {self.mask.float().mean():.0%} acquired)"

    @property
    def is_line_mask(self) -> bool:
        """Whether the mask depends on the phase-encode index alone."""
        return self.mask.shape[-2] == 1

    @property
    def device(self) -> torch.device:
        """Where the operator lives."""
        return self.sensitivity_maps.device

    def to(self, device: Any) -> "Sense":
        """The same operator on another device."""
        return Sense(self.sensitivity_maps.to(device), self.mask.to(device))

    def with_mask(self, mask: Any) -> "Sense":
        """The same coils with another sampling mask."""
        return Sense(self.sensitivity_maps, mask)

    @cached_property
    def _centred_maps(self) -> Tensor:
        ny, nx = self.image_shape[-2:]
        maps = self.sensitivity_maps
        a_y, a_x = (centring(n, maps.dtype, maps.device)[0] for n in (ny, nx))
        return maps * (a_y[:, None] * a_x)

    @cached_property
    def _centred_maps_conj(self) -> Tensor:
        """Computed once: a lazy conjugate would be resolved again at every product."""
        return self._centred_maps.conj().resolve_conj()

    @cached_property
    def _centred_mask(self) -> Tensor:
        """Mask times the outer centring factor (complex), broadcast over coils."""
        ny, nx = self.image_shape[-2:]
        dtype = self.sensitivity_maps.dtype
        b_y, b_x = (centring(n, dtype, self.device)[1] for n in (ny, nx))
        return (self.mask * (b_y[:, None] * b_x)).unsqueeze(-3)

    @cached_property
    def _coil_mask(self) -> Tensor:
        return self.mask.unsqueeze(-3).to(self.sensitivity_maps.real.dtype)

    def forward(self, image: Any) -> Tensor:
        """Image (..., y, x) to masked k-space (..., coil, y, x)."""
        image = self._checked(image, self.image_shape, "image")
        coils = self._centred_maps * image.unsqueeze(-3)
        return self._centred_mask * torch.fft.fft2(coils, norm="ortho")

    def adjoint(self, kspace: Any) -> Tensor:
        """k-space (..., coil, y, x) to image (..., y, x); samples outside the mask are ignored."""
        kspace = self._checked(kspace, self.kspace_shape, "k-space")
        coils = torch.fft.ifft2(self._centred_mask.conj() * kspace, norm="ortho")
        return (self._centred_maps_conj * coils).sum(-3)

    def normal(self, image: Any) -> Tensor:
        """``adjoint(forward(image))``, with transforms along the phase-encode axis only where the mask allows."""
        image = self._checked(image, self.image_shape, "image")
        dim = (-1,) if self.is_line_mask else (-2, -1)
        if image.is_cuda or (image.requires_grad and torch.is_grad_enabled()):
            coils = self._centred_maps * image.unsqueeze(-3)
            kspace = torch.fft.fftn(coils, dim=dim, norm="ortho").mul_(self._coil_mask)
            return (self._centred_maps_conj * torch.fft.ifftn(kspace, dim=dim, norm="ortho")).sum(-3)
        result = torch.zeros((), dtype=image.dtype)
        for c in range(self.kspace_shape[-3]):  # one coil image at a time stays in the processor's cache
            kspace = torch.fft.fftn(self._centred_maps[..., c, :, :] * image, dim=dim, norm="ortho")
            kspace.mul_(self._coil_mask[..., 0, :, :])
            term = torch.fft.ifftn(kspace, dim=dim, norm="ortho").mul_(self._centred_maps_conj[..., c, :, :])
            result = term if c == 0 else result.add_(term)
        return result

    __call__ = forward

    @property
    def H(self) -> "SenseAdjoint":
        """The adjoint as an operator of its own."""
        return SenseAdjoint(self)

    def _checked(self, x: Any, shape: tuple[int, ...], what: str) -> Tensor:
        x = as_complex(x)
        core = 2 if what == "image" else 3
        ok = x.ndim >= core and tuple(x.shape[-core:]) == shape[-core:]
        if ok and len(shape) > core and x.ndim > core:
            ok = x.shape[-core - 1] in (1, shape[0]) or shape[0] == 1
        if not ok:
            raise ValueError(f"{self!r} cannot take {what} of shape {tuple(x.shape)}")
        return x.to(self.device)


class SenseAdjoint:
    """``A^H`` as an operator: `forward` is the adjoint of the parent, and the other way round."""

    def __init__(self, parent: Sense) -> None:
        self.H = parent

    def __repr__(self) -> str:
        return f"{self.H!r}.H"

    def forward(self, kspace: Any) -> Tensor:
        """k-space (..., coil, y, x) to image (..., y, x)."""
        return self.H.adjoint(kspace)

    def adjoint(self, image: Any) -> Tensor:
        """Image (..., y, x) to masked k-space (..., coil, y, x)."""
        return self.H.forward(image)

    __call__ = forward
