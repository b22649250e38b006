r"""Bootstrapping: a denoiser for every view of the image that has plentiful data, then a small one for what they miss.

After Ma (2025). The equations are a reconstruction from the idea of that paper, not a transcription of it.

Views. A view is :math:`v_i = A_i x` with orthonormal rows, :math:`A_i A_i^H = I`. Here all views are sets of columns of
the image's k-space (`CentreView`, `LinesView`, `WholeView`); :math:`P_i = A_i^H A_i` sets the other columns to zero.
White noise stays white in a view, so that a denoiser :math:`D_i` of :math:`P_i x_t` is an ordinary diffusion model
(`ViewObjective`), with the score :math:`A_i^H s_i = (P_i D_i(P_i x_t) - P_i x_t) / s^2`. It can learn from every scan
that has the view: the fully sampled centre from all of them.

Combination. The chain rule :math:`\nabla \log p(x_t) = A_i^H s_i + \nabla \log p(x_t \mid A_i x_t)` splits the true
score into what a view knows and a rest. Several views are averaged where they overlap; adding them up would count twice
what they share:

.. math:: \bar D = x_t + s^2 \sum_i W A_i^H s_i + (I - Q)\,(D_0 - x_t), \qquad W = \Big(\sum_i P_i\Big)^+ ,

with :math:`Q` the projection on the columns that some view has and :math:`D_0` the Wiener estimate, which serves the
others. In k-space *W* is one over the number of views of a column.

Residual. `ComposedDenoiser` is the denoiser of this project with :math:`\bar D` in the place of its linear first guess,
:math:`D = \bar D + c F`, with views frozen and the last layer of the network *F* starting at zero. `Bootstrap` trains
*F* with the denoising loss on a few clean images, or with the ambient loss on undersampled scans, plus
:math:`\mu \|F\|^2`: the best residual shrinks by :math:`1 / (1 + \mu)`, and as :math:`\mu` grows the views are left
alone.

Partial masks. The views then see the linear estimate without its shrinkage, which is ``x + n`` where the scan is
complete and a guess elsewhere; network and soft data consistency follow as in any `Denoiser`. This is a heuristic: only
the full-mask denoiser is a sum of scores.

What a view learns is the distribution of the images it is given: those of reconstructions hold their noise, and the
centre of a coil-combined image leaks a little into the other columns where maps are not smooth.

References
----------
X. Ma, Bootstrapping diffusion: diffusion model training leveraging partial and corrupted data, arXiv:2505.11825 (2025).
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from mri_ambient.denoiser import Denoiser, DenoiserConfig, wiener
from mri_ambient.errors import InputError
from mri_ambient.objectives.ambient import Ambient
from mri_ambient.objectives.base import Batch
from mri_ambient.objectives.supervised import Supervised
from mri_ambient.operators import Sense, fft1c, ifft1c


class View(ABC):
    """A set of columns of the image's k-space; a subclass says which."""

    @abstractmethod
    def columns(self, width: int) -> Tensor:
        """The columns (width,), True where the view has them, for images of `width` pixels along x."""

    def indicator(self, width: int) -> Tensor:
        """`columns` as zeros and ones, checked.

        Raises
        ------
        InputError
            If the rows of the view are not orthonormal, or there are none.
        """
        columns = torch.as_tensor(self.columns(width)).float()
        if columns.shape != (width,) or not bool(((columns == 0) | (columns == 1)).all()):
            raise InputError(
                f"The rows of the view {self!r} are not orthonormal: it must keep or drop each of {width} columns, "
                "so whiten it first."
            )
        if not bool(columns.any()):
            raise InputError(f"The view {self!r} has no columns of an image that is {width} pixels wide.")
        return columns

    def project(self, image: Tensor) -> Tensor:
        """The image (..., y, x) with all other columns of its k-space set to zero."""
        return ifft1c(self.indicator(image.shape[-1]).to(image.device) * fft1c(image))


@dataclass(frozen=True)
class CentreView(View):
    """The centre of k-space, which is fully sampled in every scan: the image at a lower resolution along x.

    Attributes
    ----------
    lines : int
        Width of the band. An even band loses its outermost line, which has no partner on the other side: images are
        mirrored during training.
    """

    lines: int

    def columns(self, width: int) -> Tensor:
        offset = torch.arange(width) - width // 2
        return 2 * offset.abs() < self.lines


@dataclass(frozen=True)
class LinesView(View):
    """Given lines, for instance those that all scans of an archive share.

    Attributes
    ----------
    mask : sequence of bool
        One value a column.

    Raises
    ------
    InputError
        If a value is neither 0 nor 1, here, or the image has another number of columns, when it is used.
    """

    mask: Sequence[bool | int]

    def __post_init__(self) -> None:
        values = torch.as_tensor(self.mask).float().tolist()
        if not set(values) <= {0.0, 1.0}:
            raise InputError(
                "The rows of a view must be orthonormal: a line is in it or not, without a weight. Use a view of whole "
                "lines (--view centre:LINES), or --method ambient, which needs no views."
            )
        object.__setattr__(self, "mask", tuple(bool(v) for v in values))

    def columns(self, width: int) -> Tensor:
        if width != len(self.mask):
            raise InputError(f"A view of {len(self.mask)} k-space columns cannot serve images with {width} columns.")
        return torch.tensor(self.mask)


@dataclass(frozen=True)
class WholeView(View):
    """The whole image, for a denoiser that was trained on part of the data: a contrast, another scanner's coils."""

    def columns(self, width: int) -> Tensor:
        return torch.ones(width, dtype=torch.bool)


def view_to_dict(view: View) -> dict[str, Any]:
    """Plain values, for JSON."""
    if isinstance(view, CentreView):
        return {"kind": "centre", "lines": view.lines}
    if isinstance(view, LinesView):
        return {"kind": "lines", "mask": "".join("01"[v] for v in view.mask)}
    if isinstance(view, WholeView):
        return {"kind": "whole"}
    raise InputError(f"The view {view!r} cannot be stored in a prior.")


def view_from_dict(values: dict[str, Any]) -> View:
    """Inverse of `view_to_dict`.

    Raises
    ------
    InputError
        If the values do not describe a view.
    """
    kind = values.get("kind")
    try:
        if kind == "centre":
            return CentreView(int(values["lines"]))
        if kind == "lines":
            lines = [int(c) for c in values["mask"]]
    except (KeyError, ValueError) as error:
        raise InputError(f"{values} does not describe a view.") from error
    if kind == "lines":
        return LinesView(lines)
    if kind == "whole":
        return WholeView()
    raise InputError(f"{kind!r} is not a kind of view: centre, lines or whole.")


def parse_view(text: str) -> View:
    """The view that a user names: ``centre:LINES`` or ``whole``.

    Raises
    ------
    InputError
        If it is neither.
    """
    kind, _, lines = text.partition(":")
    if kind == "centre" and lines.isdecimal() and int(lines) > 0:
        return CentreView(int(lines))
    if text == "whole":
        return WholeView()
    raise InputError(f"The view {text!r} is neither centre:LINES (for example centre:24) nor whole.")


def require_centre(view: View, acs: int) -> None:
    """Refuse a centre that is wider than the lines that every scan has.

    Parameters
    ----------
    view : View
    acs : int
        Lines of the smallest fully sampled centre.

    Raises
    ------
    InputError
        If it is, with the view that works.
    """
    if isinstance(view, CentreView) and 2 * ((view.lines - 1) // 2) + 1 > acs:
        raise InputError(
            f"The view centre:{view.lines} is wider than the fully sampled centre of {acs} lines, so that some of its "
            f"columns are unknown in some scans: use --view centre:{acs}."
        )


def view_config(config: DenoiserConfig, view: View, width: int) -> DenoiserConfig:
    """The configuration for the denoiser of a view of images that `config` fits.

    The energy of an image sits almost entirely in the view's columns, where it therefore stands higher above the noise
    than averaged over all of them.
    """
    share = float(view.indicator(width).mean())
    return replace(config, sigma_data=config.sigma_data / share**0.5)


class ViewDenoiser(nn.Module):
    """A denoiser that sees and answers within a view: ``P D(P z, sigma)``."""

    def __init__(self, view: View, denoiser: nn.Module) -> None:
        super().__init__()
        self.view = view
        self.denoiser = denoiser

    @property
    def config(self) -> DenoiserConfig:
        """That of the denoiser inside."""
        return cast(DenoiserConfig, self.denoiser.config)

    def forward(self, z: Tensor, sigma: float | Tensor) -> Tensor:
        """Estimate the view (batch, y, x) of an image from a noisy one."""
        return self.view.project(self.denoiser(self.view.project(z), sigma))


class ComposedDenoiser(Denoiser):
    """A denoiser whose first guess comes from the frozen denoisers of views.

    Parameters
    ----------
    config : DenoiserConfig
        Size of the residual network.
    views : sequence of (View, Denoiser)

    Raises
    ------
    InputError
        If there are no views.
    """

    def __init__(self, config: DenoiserConfig, views: Sequence[tuple[View, nn.Module]]) -> None:
        super().__init__(config)
        if not views:
            raise InputError("Bootstrapping needs at least one view: train one and name its prior with --views.")
        experts = [ViewDenoiser(view, denoiser) for view, denoiser in views]
        self.experts = nn.ModuleList(experts).eval().requires_grad_(False)

    def first_guess(self, z: Tensor, sigma: Tensor, operator: Sense | None = None) -> Tensor:
        """What the views say together, and the linear estimate in the columns that no view has."""
        growth = (1 + (sigma / self.config.sigma_data) ** 2)[:, None, None]
        noisy = z if operator is None else growth * wiener(z, sigma, operator, self.config.sigma_data)
        said = torch.stack([expert(noisy, sigma) for expert in self.experts]).sum(0)
        weight = overlap_weights([expert.view for expert in self.view_denoisers], z.shape[-1]).to(z.device)
        return ifft1c(torch.where(weight > 0, weight * fft1c(said), fft1c(noisy / growth)))

    @property
    def view_denoisers(self) -> list[ViewDenoiser]:
        """The frozen denoisers, with their views."""
        return [cast(ViewDenoiser, expert) for expert in self.experts]


def overlap_weights(views: Sequence[View], width: int) -> Tensor:
    """The matrix W of the module docstring, a diagonal (width,): zero in columns that no view has."""
    count = torch.stack([view.indicator(width) for view in views]).sum(0)
    return torch.where(count > 0, 1 / count.clamp_min(1), 0.0)


def experts_to_dict(denoiser: ComposedDenoiser) -> list[dict[str, Any]]:
    """What `experts_from_dict` needs besides the weights: plain values, for JSON."""
    return [{"view": view_to_dict(e.view), "config": e.config.to_dict()} for e in denoiser.view_denoisers]


def experts_from_dict(config: DenoiserConfig, entries: Sequence[dict[str, Any]]) -> ComposedDenoiser:
    """A composed denoiser whose weights, views included, are still to be loaded.

    Raises
    ------
    InputError
        If an entry does not describe a view.
    """
    views = [(view_from_dict(e["view"]), Denoiser(DenoiserConfig.from_dict(e["config"]))) for e in entries]
    return ComposedDenoiser(config, views)


@dataclass(frozen=True)
class ViewObjective:
    """Denoising within a view, for its own denoiser.

    Attributes
    ----------
    view : View
    on_images : Supervised
        Its noise levels are used, and the denoising half of its loss.
    """

    view: View
    on_images: Supervised = field(default_factory=Supervised)

    def loss(self, denoiser: Denoiser, batch: Batch, generator: torch.Generator) -> Tensor:
        """Denoising loss on the view of the batch's images."""
        within = cast(Denoiser, ViewDenoiser(self.view, denoiser))
        return self.on_images.denoising(within, self.view.project(batch.image), generator)


@dataclass(frozen=True)
class Bootstrap:
    """Training of the residual of a `ComposedDenoiser`.

    Attributes
    ----------
    data : Supervised or Ambient
        `Supervised` where there is a small set of clean images, `Ambient` where there are undersampled scans only.
    penalty : float
        Weight of the squared residual, relative to the expected error: the residual shrinks by ``1 / (1 + penalty)``.
    """

    data: Supervised | Ambient = field(default_factory=Ambient)
    penalty: float = 0.01

    def loss(self, denoiser: Denoiser, batch: Batch, generator: torch.Generator) -> Tensor:
        """The data's loss plus the penalty."""
        if not isinstance(denoiser, ComposedDenoiser):
            raise TypeError("bootstrapping trains the residual of a ComposedDenoiser")
        watched = Watched(denoiser)
        loss = self.data.loss(cast(Denoiser, watched), batch, generator)
        return loss + self.penalty * torch.stack(watched.energies).mean()


class Watched:
    """A composed denoiser that notes the mean squared residual of every call."""

    def __init__(self, denoiser: ComposedDenoiser) -> None:
        self.denoiser = denoiser
        self.config = denoiser.config
        self.energies: list[Tensor] = []

    def __call__(self, z: Tensor, sigma: float | Tensor, operator: Sense | None = None) -> Tensor:
        estimate, residual = self.denoiser.explain(z, sigma, operator)
        self.energies.append((residual.abs() ** 2).mean())
        return estimate
