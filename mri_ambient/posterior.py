r"""The data step: a denoiser wrapped by measured k-space.

Given ``y = A x + n`` and a noisy image :math:`x_t = x + \sigma \epsilon`, let the unconditional denoiser say
:math:`x \mid x_t \sim N(D(x_t, \sigma), r^2 I)`. Then :math:`x \mid x_t, y` is Gaussian, exactly, with precision
:math:`\Lambda = A^H A / \sigma_n^2 + I / r^2` and mean

.. math::  m = \arg\min_u \|A u - y\|^2 / \sigma_n^2 + \|u - D(x_t, \sigma)\|^2 / r^2
           = (A^H A + \lambda I)^{-1} (A^H y + \lambda D), \qquad \lambda = \sigma_n^2 / r^2 .

Line masks are solved exactly (`RowSolver`: one eigendecomposition per slice for all levels and samples), others by
conjugate gradients. There is no step size to choose and no gradient through the network.

Draws. A perturbed image ``D + f`` and perturbed data ``y + n'`` go through the same linear map. If ``f`` is white with
standard deviation ``r``, the result is an exact draw of that Gaussian. But the error of a denoiser is not white: it is
by far largest at low frequencies (`mri_ambient.denoiser_error`). ``f`` is therefore drawn with the measured spectrum,
while the weight ``r`` of the data stays one number: the draws then have the covariance
:math:`(I - KA)\,C\,(I - KA)^H + 2\sigma_n^2 K K^H` of the error that an estimator with gain ``K`` makes when the
denoiser's error has covariance ``C``, whatever the gain. With white fluctuations of an ``r`` that is right on average,
unmeasured low frequencies are under-dispersed and high ones too noisy.

Several sets of coil maps (`mri_ambient.operators.sense.SoftSense`): the images of the sets are independent before the
data are seen, and the denoiser takes each as an image of its own.

References
----------
J. Song, A. Vahdat, M. Mardani, J. Kautz, Pseudoinverse-guided diffusion models for inverse problems, ICLR 2023 (the
isotropic approximation). G. Papandreou, A. Yuille, Gaussian sampling by local perturbations, NIPS 2010 (draws by
solving a perturbed system).
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from mri_ambient.denoiser import noise_schedule
from mri_ambient.operators import CgSolver, RowSolver, Sense, ifft2c, normal_solver
from mri_ambient.operators.sense import SoftSense, side_by_side

# Both were chosen with priors learned on patients 01 and 03, on patient 12 at R = 2, 4, 8 (docs/research-log.md).
ERROR_FACTOR = 3.0  # error at the frequencies that undersampling hides, over the root mean square error
SPREAD_FACTOR = 2.0  # error on the images of a chain, over the error on noised images
START_REGULARISATION = 0.05  # of the least-squares image that the first noise is added to
MIN_NOISE = 4e-3  # in prior units: errors of estimated coil maps are as large; docs/research-log.md


class ImageDenoiser(Protocol):
    """Anything that maps noisy images (batch, y, x) at a noise level to their expected clean image."""

    def __call__(self, noisy: Tensor, sigma: float | Tensor) -> Tensor:
        """Estimate the image."""
        ...


class MeasuredSlice:
    """Measured k-space of one slice, and a denoiser that knows what images look like.

    Parameters
    ----------
    denoiser : callable
        ``(x_t (samples, y, x), sigma) -> image``; for instance `mri_ambient.denoiser.Denoiser`.
    kspace : Tensor (coil, y, x)
        Measured, in prior units.
    operator : Sense
        Of one slice. With several sets of maps, an image (y, x) is all of theirs side by side, here and below.
    noise_std : float
        Of `kspace`, per real component; positive.
    solver : RowSolver or CgSolver, optional
        For ``(A^H A + lambda) u = b``. Default: whichever fits the mask.

    Attributes
    ----------
    adjoint : Tensor (y, x)
        ``A^H y``.
    support : Tensor (y, x), bool
        Where some coil is sensitive; elsewhere images are zero.
    evaluations : int
        How often the denoiser was called (once for a batch of samples).

    Raises
    ------
    ValueError
        If the noise level is not positive.
    """

    def __init__(
        self,
        denoiser: ImageDenoiser,
        kspace: Tensor,
        operator: Sense,
        noise_std: float,
        solver: RowSolver | CgSolver | None = None,
    ) -> None:
        if not noise_std > 0:
            raise ValueError("posterior sampling needs a positive noise level")
        self.denoiser = each_set(denoiser, operator) if isinstance(operator, SoftSense) else denoiser
        self.operator = operator
        self.noise_std = noise_std
        self.solver = solver or normal_solver(operator)
        self.adjoint = operator.adjoint(kspace)
        self.support = operator.sensitivity_maps.abs().amax(-3) > 0
        self.evaluations = 0

    def start(self) -> Tensor:
        """A regularised least-squares image (y, x), to begin with where nothing better is known."""
        return self.solver.solve(self.adjoint, START_REGULARISATION)

    def noise(self, generators: Sequence[torch.Generator], coils: bool = False) -> Tensor:
        """White noise (samples, y, x) or (samples, coil, y, x), standard deviation 1 per component."""
        shape = self.operator.kspace_shape if coils else self.operator.image_shape
        return torch.stack([white_noise(shape, g) for g in generators]).to(self.adjoint.device)

    def conditional(self, mean: Tensor, spread: float) -> Tensor:
        """Mean (samples, y, x) of x given the data, if ``x ~ N(mean, spread^2 I)`` before."""
        ratio = (self.noise_std / spread) ** 2
        return self.solver.solve(self.adjoint + ratio * mean, ratio, initial=mean)

    def conditional_draw(
        self, mean: Tensor, fluctuation: Tensor, spread: float, generators: Sequence[torch.Generator]
    ) -> Tensor:
        """`conditional` of perturbed mean and data: a draw, if the fluctuation is one of ``N(0, spread^2 I)``."""
        ratio, image = (self.noise_std / spread) ** 2, mean + fluctuation
        rhs = self.adjoint + ratio * image
        if isinstance(self.solver, RowSolver):
            return self.solver.solve_noisy(rhs, self.noise_std * self.noise(generators), ratio)
        data_noise = self.operator.adjoint(self.noise(generators, coils=True))
        return self.solver.solve(rhs + self.noise_std * data_noise, ratio, initial=image)


class PosteriorDenoiser(MeasuredSlice):
    """``x | x_t, y`` from a denoiser, measured k-space and its operator.

    Parameters
    ----------
    denoiser, kspace, operator, noise_std, solver
        As in `MeasuredSlice`.
    error : callable
        ``sigma -> r``, the error of the denoiser per real component that the data are weighted with.
    spectrum : callable, optional
        ``sigma -> (y, x)``, standard deviation per real component of the denoiser's error in centred k-space. Default:
        white, of standard deviation ``r``.
    """

    def __init__(
        self,
        denoiser: ImageDenoiser,
        kspace: Tensor,
        operator: Sense,
        noise_std: float,
        error: Callable[[float], float],
        solver: RowSolver | CgSolver | None = None,
        spectrum: Callable[[float], Tensor] | None = None,
    ) -> None:
        super().__init__(denoiser, kspace, operator, noise_std, solver)
        self.error = error
        self.spectrum = spectrum

    def __call__(self, noisy: Tensor, sigma: float) -> Tensor:
        """Posterior mean (samples, y, x) given noisy images at one level."""
        self.evaluations += 1
        return self.conditional(self.denoiser(noisy, sigma), self.error(sigma))

    def draw(self, noisy: Tensor, sigma: float, generators: Sequence[torch.Generator]) -> Tensor:
        """One draw (samples, y, x) of ``x | x_t, y`` for each noisy image, one generator a sample."""
        self.evaluations += 1
        r = self.error(sigma)
        return self.conditional_draw(self.denoiser(noisy, sigma), self._left_out(r, sigma, generators), r, generators)

    def _left_out(self, r: float, sigma: float, generators: Sequence[torch.Generator]) -> Tensor:
        """A Gaussian draw (samples, y, x) of what the denoiser may have left out."""
        white = self.noise(generators)
        if self.spectrum is None:
            return r * white
        return ifft2c(self.spectrum(sigma).to(white.device) * white)


def each_set(denoiser: ImageDenoiser, operator: SoftSense) -> ImageDenoiser:
    """The denoiser, for images (samples, y, sets * x) of the operator's sets side by side."""

    def denoise(noisy: Tensor, sigma: float | Tensor) -> Tensor:
        images = operator.apart(noisy)
        return side_by_side(denoiser(images.flatten(0, 1), sigma).reshape(images.shape))

    return denoise


def one_each(generators: Sequence[torch.Generator] | None, samples: int) -> Sequence[torch.Generator]:
    """The generators, one a sample; by default with the seeds 0, 1, 2, ...

    Raises
    ------
    ValueError
        If their number is not that of the samples.
    """
    if generators is None:
        return [torch.Generator().manual_seed(i) for i in range(samples)]
    if len(generators) != samples:
        raise ValueError(f"{samples} samples need as many generators, not {len(generators)}")
    return generators


def white_noise(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Complex noise, standard deviation 1 per real and per imaginary component, on the CPU."""
    return torch.view_as_complex(torch.randn(*shape, 2, generator=generator))


@torch.no_grad()
def refine(
    posterior: PosteriorDenoiser, image: Tensor, *, steps: int = 10, high: float = 0.1, low: float = 0.01
) -> Tensor:
    """Annealing without noise from an image (y, x): a point estimate close to the mean of many samples.

    The average of a few samples still carries a share of their spread. Falling conditional means, started at that
    average, remove it.
    """
    image = image[None]
    for sigma in noise_schedule(steps, high, low):
        image = posterior(image, sigma) * posterior.support
    return image[0]
