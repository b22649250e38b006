r"""The multi-coil forward model :math:`A = M F S` of Cartesian MRI.

With maps normalised to :math:`\sum_c |S_c|^2 = 1` on the support, ``F S`` is an isometry and ``||A|| <= 1``.

Speed. A centred FFT is a plain FFT between two unit-modulus factors (`fourier.centring`). The inner factor is
multiplied into the sensitivity maps once; the outer one cancels in ``A^H A = S^H F^H M F S`` because the mask is
diagonal. When the mask depends on the phase-encode index alone, the transform along the readout cancels too, so that
the normal operator needs 1-D transforms only, and image rows are independent: a few rows at a time stay in the
processor's cache. Since :math:`F^H k = \overline{F \overline{k}}`,

.. math:: \overline{A^H A x} = \sum_c S_c F \, \overline{M F S_c x} ,

so that one set of maps serves both sides, and the conjugation is a sign in the mask. The normal operator is its own
derivative; its gradient needs no graph of the transforms.

Several sets of maps. Where two parts of an object lie on top of each other (a field of view smaller than the object),
or an object moves, no single map explains a pixel. With sets *s* of maps and an image for each,

.. math:: y = M F \sum_s S_s x_s ,

and the signal at a pixel is the part of the coil images that the maps there span (soft SENSE). `SoftSense` keeps the
images of the sets side by side along x: one array (y, sets * x) is *the* image, so that whatever solves for an image,
or samples one, solves for several.

References
----------
K. P. Pruessmann et al., SENSE: sensitivity encoding for fast MRI, Magn. Reson. Med. 42 (1999) 952-962.
M. Uecker et al., ESPIRiT, an eigenvalue approach to autocalibrating parallel MRI: where SENSE meets GRAPPA, Magn.
Reson. Med. 71 (2014) 990-1001 (several sets of maps).
"""

from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from .arrays import as_complex, as_mask
from .fourier import centring

# Samples transformed at a time by one thread, so that the arrays involved fit a second-level cache, and by several
# threads, which would wait for one another after every small block.
BLOCK, THREADED_BLOCK = 2**15, 2**21


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
    sets : int
        Number of sets of maps: 1, see `SoftSense` for more.

    Raises
    ------
    ValueError
        If shapes do not fit each other, here or in a call.
    """

    sets = 1

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

    @cached_property
    def _conjugating_mask(self) -> Tensor:
        """(..., 1, 1 or y, x, 2): factors of real and imaginary parts that mask k-space and conjugate it."""
        return self._coil_mask[..., None] * self._coil_mask.new_tensor([1.0, -1.0])

    def forward(self, image: Any) -> Tensor:
        """Image (..., y, x) to masked k-space (..., coil, y, x)."""
        image = self._checked(image, self.image_shape, "image")
        coils = self._centred_maps * image.unsqueeze(-3)
        return torch.fft.fft2(coils, norm="ortho").mul_(self._centred_mask)

    def adjoint(self, kspace: Any) -> Tensor:
        """k-space (..., coil, y, x) to image (..., y, x); samples outside the mask are ignored."""
        kspace = self._checked(kspace, self.kspace_shape, "k-space")
        coils = torch.fft.ifft2(self._centred_mask.conj() * kspace, norm="ortho")
        return coils.mul_(self._centred_maps_conj).sum(-3)

    def normal(self, image: Any) -> Tensor:
        """``adjoint(forward(image))``, with transforms along the phase-encode axis only where the mask allows."""
        image = self._checked(image, self.image_shape, "image")
        if self.sensitivity_maps.requires_grad:
            return self.adjoint(self.forward(image))
        return _Normal.apply(image, self)

    def _normal(self, image: Tensor) -> Tensor:
        dim = (-1,) if self.is_line_mask else (-2, -1)
        if image.is_cuda:
            coils = self._centred_maps * image.unsqueeze(-3)
            kspace = torch.fft.fftn(coils, dim=dim, norm="ortho").mul_(self._coil_mask)
            return torch.fft.ifftn(kspace, dim=dim, norm="ortho").mul_(self._centred_maps_conj).sum(-3)
        maps = self._centred_maps
        result = torch.zeros(image.shape, dtype=torch.result_type(image, maps))

        def there_and_back(coils: Tensor) -> Tensor:
            kspace = torch.fft.fftn(coils, dim=dim, norm="ortho")
            torch.view_as_real(kspace).mul_(self._conjugating_mask)
            return torch.fft.fftn(kspace, dim=dim, norm="ortho")

        block = BLOCK if torch.get_num_threads() == 1 else THREADED_BLOCK
        if self.is_line_mask:  # a few rows of all coils at a time
            rows = max(1, block // max(1, image[..., 0, :].numel() * maps.shape[-3]))
            for x, part, out in zip(*(v.split(rows, dim=-2) for v in (image, maps, result)), strict=True):
                torch.sum(there_and_back(part * x.unsqueeze(-3)).mul_(part), dim=-3, out=out)
        else:  # all rows of a few coils
            for part in maps.split(max(1, block // max(1, image.numel())), dim=-3):
                result += there_and_back(part * image.unsqueeze(-3)).mul_(part).sum(-3)
        return result.conj_physical_()

    __call__ = forward

    def combine(self, image: Tensor) -> Tensor:
        """What to show of an image (..., y, x): the image itself, see `SoftSense`."""
        return image

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
        x = x.to(self.device)
        return x if len(shape) == core else x.expand(torch.broadcast_shapes(x.shape, shape))


class _Normal(torch.autograd.Function):
    """A Hermitian operator, which is its own derivative, forwards and backwards."""

    @staticmethod
    def forward(image: Tensor, operator: Sense) -> Tensor:
        return operator._normal(image)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Sense], output: Tensor) -> None:
        ctx.operator = inputs[1]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _Normal.apply(gradient, ctx.operator), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        return _Normal.apply(tangent, ctx.operator)

    @staticmethod
    def vmap(info: Any, dims: tuple[int, None], image: Tensor, operator: Sense) -> tuple[Tensor, int]:
        return _Normal.apply(image.movedim(dims[0], 0), operator), 0


class SoftSense(Sense):
    """Forward model of one slice with several sets of sensitivity maps; `apart` gives the images of the sets.

    Parameters
    ----------
    sensitivity_maps : array (set, coil, y, x)
        Usually orthonormal at every pixel, from `espirit`; zero where a set is not needed.
    mask : array (x,) or (y, x)
        True (non-zero) where k-space was acquired.

    Attributes
    ----------
    sets : int
    each : Sense
        The sets as items of a batch: images (set, y, x), each with k-space of its own.
    sensitivity_maps : Tensor (coil, y, sets * x)
        Side by side, as the images are.
    image_shape, kspace_shape : tuple
        ``(y, sets * x)`` and ``(coil, y, x)``.

    Raises
    ------
    ValueError
        If shapes do not fit each other, here or in a call.
    """

    def __init__(self, sensitivity_maps: Any, mask: Any) -> None:
        maps, mask = as_complex(sensitivity_maps), as_mask(mask)
        if maps.ndim != 4 or mask.ndim > 2:
            raise ValueError(
                f"sets of maps must be (set, coil, y, x) and their mask (x,) or (y, x), not {tuple(maps.shape)} and "
                f"{tuple(mask.shape)}"
            )
        self.each = Sense(maps, mask)
        self.sets, _, ny, nx = maps.shape
        self.sensitivity_maps = side_by_side(maps.movedim(0, 1))
        self.mask = self.each.mask
        self.image_shape = (ny, self.sets * nx)
        self.kspace_shape = tuple(maps.shape[1:])

    def __repr__(self) -> str:
        return f"Soft{super().__repr__()[:-1]}, {self.sets} sets)"

    def to(self, device: Any) -> "SoftSense":
        """The same operator on another device."""
        return SoftSense(self.each.sensitivity_maps.to(device), self.mask.to(device))

    def with_mask(self, mask: Any) -> "SoftSense":
        """The same coils with another sampling mask."""
        return SoftSense(self.each.sensitivity_maps, mask)

    def apart(self, image: Tensor) -> Tensor:
        """Images side by side (..., y, sets * x) as (..., set, y, x)."""
        return image.unflatten(-1, (self.sets, -1)).movedim(-2, -3)

    def combine(self, image: Tensor) -> Tensor:
        """One image (..., y, x) of those side by side: their root sum of squares, with the phase of the first.

        With maps that are orthonormal at every pixel, the magnitude is that of the coil images, whatever basis of the
        space that the maps span was chosen.
        """
        images = self.apart(image)
        return torch.polar(torch.linalg.vector_norm(images, dim=-3), images[..., 0, :, :].angle())

    def forward(self, image: Any) -> Tensor:
        """Images side by side (..., y, sets * x) to masked k-space (..., coil, y, x)."""
        images = self.apart(self._checked(image, self.image_shape, "image"))
        coils = (self.each._centred_maps * images.unsqueeze(-3)).sum(-4)
        return self.each._centred_mask * torch.fft.fft2(coils, norm="ortho")

    def adjoint(self, kspace: Any) -> Tensor:
        """k-space (..., coil, y, x) to images side by side (..., y, sets * x); ignores samples outside the mask."""
        kspace = self._checked(kspace, self.kspace_shape, "k-space")
        coils = torch.fft.ifft2(self.each._centred_mask.conj() * kspace, norm="ortho")
        return side_by_side((self.each._centred_maps_conj * coils.unsqueeze(-4)).sum(-3))

    def normal(self, image: Any) -> Tensor:
        """``adjoint(forward(image))``."""
        return self.adjoint(self.forward(image))

    __call__ = forward


def side_by_side(images: Tensor) -> Tensor:
    """Images (..., set, y, x) side by side along x, (..., y, sets * x); `SoftSense.apart` is the inverse."""
    return images.movedim(-3, -2).flatten(-2)


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
