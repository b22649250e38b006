"""Bootstrapping on Gaussian images, where the score of every view, of the rest and of the whole is known."""

import json
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch
from gaussian_views import GaussianDenoiser, MatrixNetwork, covariance, images, minimise, on_columns, part, shrinkage

from mri_ambient.dataset import reverse
from mri_ambient.denoiser import Denoiser, DenoiserConfig
from mri_ambient.errors import InputError
from mri_ambient.objectives import Ambient, Batch, Supervised, bootstrap
from mri_ambient.objectives.ambient import Split, heldout_loss
from mri_ambient.objectives.base import complex_normal
from mri_ambient.objectives.bootstrap import (
    Bootstrap,
    CentreView,
    ComposedDenoiser,
    LinesView,
    View,
    ViewDenoiser,
    ViewObjective,
    WholeView,
    experts_from_dict,
    experts_to_dict,
    overlap_weights,
    view_config,
    view_from_dict,
    view_to_dict,
)
from mri_ambient.operators import Sense, fft1c, fft2c, ifft1c

WIDTH = 6
SMALL = DenoiserConfig(channels=(4, 8), embedding=8, sigma_data=0.6)
SIGMA = 0.5
CENTRE = CentreView(3)
OVERLAPPING = (CENTRE, LinesView((1, 1, 1, 0, 0, 1)), LinesView((0, 0, 0, 1, 1, 1)))


def gaussian(seed=0):
    return torch.Generator().manual_seed(seed)


def exact(view, k):
    """A view's own denoiser."""
    return view, GaussianDenoiser(part(k, view.indicator(WIDTH)))


def score(denoised, noisy):
    return fft1c(denoised - noisy) / SIGMA**2


def noisy_images(k, count=3, rows=4):
    x = images(count, rows, k, gaussian(1))
    return x + SIGMA * complex_normal(x.shape, gaussian(2), x.device)


# --- the combination


def check_chain_rule(k, view_covariance):
    """Score of the view, plus that of the rest given the view, is the true score; all in k-space."""
    noisy = noisy_images(k)
    v = CENTRE.indicator(WIDTH).bool()
    views = [(CENTRE, GaussianDenoiser(part(view_covariance, v)))]
    total = k + SIGMA**2 * torch.eye(WIDTH)
    gain = total[~v][:, v] @ torch.linalg.inv(total[v][:, v])
    rest = total[~v][:, ~v] - gain @ total[v][:, ~v]
    spectrum = fft1c(noisy)
    surprise = on_columns(torch.linalg.inv(rest), spectrum[..., ~v] - on_columns(gain, spectrum[..., v]))
    residual = torch.zeros_like(spectrum)
    residual[..., ~v] = -surprise + spectrum[..., ~v] / (SIGMA**2 + SMALL.sigma_data**2)  # in place of Wiener's
    residual[..., v] = on_columns(gain.mH, surprise)
    composed = score(ComposedDenoiser(SMALL, views)(noisy, SIGMA), noisy) + residual
    torch.testing.assert_close(composed, -on_columns(torch.linalg.inv(total), spectrum), rtol=1e-4, atol=1e-4)


def test_view_score_plus_residual_score_is_the_true_score():
    k = covariance(WIDTH)
    check_chain_rule(k, k)


def test_it_is_not_when_the_view_was_learned_wrongly():
    k = covariance(WIDTH)
    with pytest.raises(AssertionError):
        check_chain_rule(k, 1.1 * k)


def check_overlapping_views(views):
    """Independent columns that are all covered: the views alone are the true denoiser."""
    k = covariance(WIDTH, correlated=False)
    noisy = noisy_images(k)
    truth = on_columns(shrinkage(k, SIGMA), fft1c(noisy), ifft1c)
    found = ComposedDenoiser(SMALL, [exact(v, k) for v in views])(noisy, SIGMA)
    torch.testing.assert_close(found, truth, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("views", [OVERLAPPING, (WholeView(), CENTRE), (WholeView(), WholeView())])
def test_what_views_share_counts_once(views):
    check_overlapping_views(views)


@pytest.mark.parametrize("views", [OVERLAPPING, (WholeView(), CENTRE), (WholeView(), WholeView())])
def test_it_counts_twice_without_the_weights(views, monkeypatch):
    monkeypatch.setattr(bootstrap, "overlap_weights", lambda views, width: (overlap_weights(views, width) > 0).float())
    with pytest.raises(AssertionError):
        check_overlapping_views(views)


def test_weights_are_the_pseudo_inverse_of_the_summed_projections():
    views = (CENTRE, LinesView((1, 0, 1, 0, 1, 0)))
    projections = [torch.stack([fft1c(v.project(ifft1c(e))) for e in torch.eye(WIDTH)]) for v in views]
    expected = torch.linalg.pinv(sum(projections), rtol=1e-3)
    torch.testing.assert_close(torch.diag(overlap_weights(views, WIDTH)).to(expected.dtype), expected)


def test_views_project_orthogonally():
    x, y = (complex_normal((2, 5, WIDTH), gaussian(i), torch.device("cpu")) for i in (0, 1))
    for view in OVERLAPPING:
        p = view.project(x)
        torch.testing.assert_close(view.project(p), p)
        torch.testing.assert_close((p.conj() * y).sum(), (x.conj() * view.project(y)).sum())


def test_a_view_denoiser_sees_and_answers_within_its_view():
    k, z = covariance(WIDTH), complex_normal((2, 4, WIDTH), gaussian(), torch.device("cpu"))
    sigma, inner = torch.full((2,), SIGMA), GaussianDenoiser(k)
    answer = ViewDenoiser(CENTRE, inner)(z, sigma)
    torch.testing.assert_close(answer, CENTRE.project(inner(CENTRE.project(z), sigma)))
    torch.testing.assert_close(answer, CENTRE.project(answer))
    assert float((answer - inner(CENTRE.project(z), sigma)).abs().max()) > 0.01


@pytest.mark.parametrize("width", [6, 7])
@pytest.mark.parametrize("lines", [1, 2, 3, 4, 5])
def test_the_centre_is_a_band_that_mirroring_keeps(width, lines):
    view, x = CentreView(lines), complex_normal((1, 2, width), gaussian(), torch.device("cpu"))
    columns = view.columns(width)
    assert int(columns.sum()) == (lines if lines % 2 else lines - 1)
    start = width // 2 - lines // 2
    assert not bool(columns[:start].any() or columns[start + lines :].any())  # within the planned centre
    torch.testing.assert_close(view.project(reverse(x, -1)), reverse(view.project(x), -1))


class Weighted(View):
    """Rows that are orthogonal but not of norm one."""

    def columns(self, width):
        return torch.full((width,), 0.5)


def test_views_without_orthonormal_rows_are_refused():
    with pytest.raises(InputError, match="orthonormal"):
        LinesView((1, 0.5, 0))
    with pytest.raises(InputError, match="orthonormal"):
        ComposedDenoiser(SMALL, [(Weighted(), Denoiser(SMALL))])(torch.zeros(1, 4, WIDTH), 0.1)
    batch = SimpleNamespace(image=torch.zeros(1, 4, WIDTH))
    with pytest.raises(InputError, match="orthonormal"):
        ViewObjective(Weighted()).loss(Denoiser(SMALL), batch, gaussian())
    for view in (CentreView(0), LinesView([0] * WIDTH)):
        with pytest.raises(InputError, match="no columns"):
            view.indicator(WIDTH)
    with pytest.raises(InputError, match=r"6 k-space columns .* 7 columns"):
        OVERLAPPING[1].project(torch.zeros(1, 4, 7))
    with pytest.raises(InputError, match="at least one view"):
        ComposedDenoiser(SMALL, [])


# --- what the losses learn


@dataclass(frozen=True)
class Denoising(Supervised):
    """At one noise level, without the one-step reconstructions."""

    sigma_range: tuple[float, float] = (SIGMA, SIGMA)

    def loss(self, denoiser, batch, generator):
        return self.denoising(denoiser, batch.image, generator)


def amplitude():
    """Input and output scaling of the network at SIGMA, together."""
    return SIGMA * SMALL.sigma_data / (SIGMA**2 + SMALL.sigma_data**2)


def in_image(matrix):
    """A matrix of k-space columns as one of pixels."""
    return torch.stack([on_columns(matrix, fft1c(e), ifft1c) for e in torch.eye(WIDTH)], dim=1)


def close_on_average(found, expected, tolerance):
    assert float((found - expected).norm() / expected.norm()) < tolerance


def check_residual(penalty, expected_penalty):
    """The best linear residual on clean images against the closed form."""
    k = covariance(WIDTH)
    model = ComposedDenoiser(SMALL, [exact(CENTRE, k), exact(OVERLAPPING[1], k)])
    model.network = MatrixNetwork(WIDTH)
    batch = SimpleNamespace(image=images(1000, 24, k, gaussian(1)))
    objective = Bootstrap(Denoising(), penalty)
    minimise(model.network, lambda: objective.loss(model, batch, gaussian(2)))
    weights = overlap_weights([CENTRE, OVERLAPPING[1]], WIDTH)
    known = sum(shrinkage(part(k, v.indicator(WIDTH)), SIGMA) for v in (CENTRE, OVERLAPPING[1]))
    blind = torch.diag(weights == 0) * SMALL.sigma_data**2 / (SMALL.sigma_data**2 + SIGMA**2)
    residual = (shrinkage(k, SIGMA) - weights[:, None] * known - blind) / (1 + expected_penalty)
    close_on_average(amplitude() * model.network.matrix.detach(), in_image(residual), 0.06)


@pytest.mark.parametrize("penalty", [0.0, 0.5])
def test_best_residual_is_what_the_views_miss_and_shrinks_with_the_penalty(penalty):
    check_residual(penalty, penalty)


def test_it_does_not_without_the_penalty():
    with pytest.raises(AssertionError):
        check_residual(0.0, 0.5)


def test_a_view_learns_its_own_denoiser_and_sees_nothing_else():
    k = covariance(WIDTH)
    model = Denoiser(SMALL)
    model.network = MatrixNetwork(WIDTH)
    x = images(1000, 24, k, gaussian(1))
    objective = ViewObjective(CENTRE, Denoising())
    minimise(model.network, lambda: objective.loss(model, SimpleNamespace(image=x), gaussian(2)))
    wiener = SMALL.sigma_data**2 / (SMALL.sigma_data**2 + SIGMA**2)
    v = CENTRE.indicator(WIDTH)
    learned = amplitude() * model.network.matrix.detach() + wiener * torch.eye(WIDTH)
    basis = torch.stack([fft1c(e) for e in torch.eye(WIDTH)], dim=1)
    close_on_average(part(basis @ learned @ basis.mH, v), shrinkage(part(k, v), SIGMA), 0.03)
    other = x + images(1000, 24, part(k, 1 - v), gaussian(3))
    values = [objective.loss(model, SimpleNamespace(image=image), gaussian(2)) for image in (x, other)]
    torch.testing.assert_close(values[0], values[1], rtol=1e-5, atol=1e-6)


@dataclass(frozen=True)
class OneSplit(Ambient):
    """The loss on measured lines for one split and level."""

    split: Split | None = None
    sigma: float = SIGMA

    def loss(self, denoiser, batch, generator):
        return heldout_loss(denoiser, batch, self.split, torch.full((len(batch),), self.sigma), generator)


def check_residual_without_clean_data(told_noise, noise=0.42):
    """One coil with a phase; lines 2 to 4 are always in the input, of the others two of three are measured."""
    k, count = covariance(WIDTH), 2000
    phase = torch.polar(torch.ones(WIDTH), 0.7 * torch.arange(WIDTH))
    maps = phase.expand(count, 1, 4, WIDTH)
    x = phase.conj() * images(count, 4, k, gaussian(1))  # so that k is the covariance of what is measured
    kept = torch.tensor([0, 0, 1, 1, 1, 0]).bool().expand(count, 1, WIDTH)
    drop = torch.tensor([0, 1, 5])[torch.randint(3, (count,), generator=gaussian(3))]
    mask = torch.ones_like(kept).scatter(2, drop[:, None, None], False)
    measured = fft2c(maps * x[:, None]) + noise * complex_normal((count, 1, 4, WIDTH), gaussian(4), x.device)
    level = torch.full((count,), told_noise)
    batch = Batch(measured * mask[:, None], maps, mask, torch.empty(0), torch.empty(0), level, torch.empty(0))
    split = Split(kept, torch.where(kept, 1.0, 1.5) * mask, torch.full((count,), 2 / 3))
    model = ComposedDenoiser(SMALL, [exact(CENTRE, k)])
    model.network = MatrixNetwork(WIDTH)
    sigma = (SIGMA**2 - noise**2 + told_noise**2) ** 0.5  # the input's true level is SIGMA
    objective = Bootstrap(OneSplit(split=split, sigma=sigma), penalty=0.0)
    minimise(model.network, lambda: objective.loss(model, batch, gaussian(5)))

    operator = Sense(maps[:4], kept[:4])
    y = fft2c(maps[:4] * x[:4, None]) + SIGMA * complex_normal((4, 1, 4, WIDTH), gaussian(6), x.device)
    z = operator.adjoint(y)
    found = model(z, sigma, operator).detach()
    a = kept[0, 0].float()
    gain = (k * a) @ torch.linalg.inv(part(k, a) + SIGMA**2 * torch.eye(WIDTH))
    expected = phase.conj() * on_columns(gain, fft1c(phase * z), ifft1c)
    close_on_average(found, expected, 0.04)


def test_without_clean_data_the_composed_estimate_is_still_the_posterior_mean():
    check_residual_without_clean_data(told_noise=0.42)


def test_it_is_not_when_the_noise_is_ignored():
    with pytest.raises(AssertionError):
        check_residual_without_clean_data(told_noise=0.01)


# --- the network


def composed():
    torch.manual_seed(0)
    experts = [(CENTRE, Denoiser(view_config(SMALL, CENTRE, WIDTH))), (WholeView(), Denoiser(SMALL))]
    for _, denoiser in experts:
        for parameter in denoiser.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    return ComposedDenoiser(SMALL, experts)


@pytest.mark.parametrize("shape", [(4, 6), (5, 7)])
def test_untrained_it_is_the_views_and_a_full_scan_is_no_scan(shape):
    model, z = composed(), complex_normal((2, *shape), gaussian(), torch.device("cpu"))
    sigma = torch.tensor([0.1, 0.4])
    torch.testing.assert_close(model(z, sigma), model.first_guess(z, sigma))
    full = Sense(torch.ones(1, *shape), torch.ones(shape[1]))
    torch.testing.assert_close(model.first_guess(z, sigma, full), model.first_guess(z, sigma), rtol=1e-4, atol=1e-5)
    partial = full.with_mask(torch.arange(shape[1]) % 2 == 0)
    assert model(partial.normal(z), sigma, partial).shape == z.shape


def test_only_the_residual_is_trained():
    model = composed()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    mask = (torch.arange(WIDTH) % 2 == 0).expand(2, 1, WIDTH)
    z = complex_normal((2, 4, WIDTH), gaussian(), torch.device("cpu"))
    model(z, 0.3, Sense(torch.ones(2, 1, 4, WIDTH), mask)).abs().square().sum().backward()
    trained = {n for n, p in model.named_parameters() if p.grad is not None and bool(p.grad.abs().max() > 0)}
    assert trained == {n for n, _ in model.named_parameters() if not n.startswith("experts.")}


def test_a_view_denoiser_starts_as_the_wiener_filter_of_its_columns():
    band = CENTRE.indicator(WIDTH)
    energy = 1.7
    k = torch.diag(band).to(torch.complex64) * energy
    config = view_config(replace(SMALL, sigma_data=(energy * float(band.mean())) ** 0.5), CENTRE, WIDTH)
    noisy = CENTRE.project(noisy_images(k))
    expected = on_columns(shrinkage(k, SIGMA), fft1c(noisy), ifft1c)
    torch.testing.assert_close(Denoiser(config)(noisy, SIGMA), expected)


def test_bootstrap_needs_a_composed_denoiser():
    with pytest.raises(TypeError, match="ComposedDenoiser"):
        Bootstrap().loss(Denoiser(SMALL), None, gaussian())


# --- storage


@pytest.mark.parametrize("view", [CentreView(24), LinesView((True, False, True)), WholeView()])
def test_views_survive_json(view):
    assert view_from_dict(json.loads(json.dumps(view_to_dict(view)))) == view


@pytest.mark.parametrize("values", [{}, {"kind": "magic"}, {"kind": "centre"}, {"kind": "lines", "mask": "01x"}])
def test_unknown_views_are_refused(values):
    with pytest.raises(InputError):
        view_from_dict(values)


def test_a_composed_denoiser_survives_storage():
    model = composed()
    entries = json.loads(json.dumps(experts_to_dict(model)))
    restored = experts_from_dict(SMALL, entries)
    restored.load_state_dict(model.state_dict())
    z = complex_normal((1, 4, WIDTH), gaussian(), torch.device("cpu"))
    torch.testing.assert_close(restored(z, 0.2), model(z, 0.2))
