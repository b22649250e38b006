"""SSDU on Gaussian images, where the posterior mean is a matrix, and the unrolled network it trains."""

from types import SimpleNamespace

import pytest
import torch
from gaussian_views import MatrixNetwork, covariance, images, minimise, on_columns
from torch import nn

from mri_ambient.objectives import Batch
from mri_ambient.objectives.ambient import Split, further_undersample
from mri_ambient.objectives.base import complex_normal
from mri_ambient.objectives.ssdu import SSDU
from mri_ambient.operators import MaskPattern, Sense, fft1c, fft2c, heldout_weights, ifft1c
from mri_ambient.unrolled import Unrolled, UnrolledConfig

WIDTH, ROWS, COILS = 8, 4, 2
KEPT = torch.tensor([0, 0, 0, 1, 1, 0, 1, 0]).bool()
ACQUIRED = torch.tensor([0.3, 0.4, 0.6, 1, 1, 0.9, 0.8, 0.2])  # probabilities of the archive's pattern
KEEP = 0.6
WEIGHTED = SSDU()
SMALL = UnrolledConfig(rounds=3, channels=4, levels=2)


def gaussian(seed=0):
    return torch.Generator().manual_seed(seed)


def coil_maps():
    maps = complex_normal((COILS, 1, WIDTH), gaussian(7), torch.device("cpu"))
    return (maps / maps.abs().square().sum(0).sqrt()).expand(COILS, ROWS, WIDTH)


def scans(noise, count, seed=1):
    """Scans whose split has the input KEPT, the rest measured as the archive's pattern would, given that input."""
    x = images(count, ROWS, covariance(WIDTH), gaussian(seed))
    maps = coil_maps().expand(count, -1, -1, -1)
    measured = ACQUIRED * (1 - KEEP) / (1 - ACQUIRED * KEEP)
    mask = KEPT | (torch.rand(count, WIDTH, generator=gaussian(seed + 1)) < measured)
    kspace = fft2c(maps * x[:, None])
    kspace = kspace + noise * complex_normal(kspace.shape, gaussian(seed + 2), x.device)
    weights = torch.stack([heldout_weights(m, KEPT, probability=ACQUIRED, keep=KEEP, acs=2) for m in mask])
    split = Split(KEPT.expand(count, 1, WIDTH), weights[:, None], torch.ones(count))
    level = torch.full((count,), noise)
    return Batch(kspace * mask[:, None, None], maps, mask[:, None], torch.empty(0), torch.empty(0), level, x), split


def unweighted(split):
    return Split(split.kept, (split.weights > 0).float(), split.probability)


class Linear(nn.Module):
    """Any matrix for the one input mask, with the interface of the network."""

    config = SimpleNamespace(sigma_data=1.0)

    def __init__(self):
        super().__init__()
        self.network = MatrixNetwork(WIDTH)

    def forward(self, z, sigma, operator):
        return on_columns(self.network.matrix, z)


def dense_normal():
    operator = Sense(coil_maps()[:, :1], KEPT)
    columns = [operator.normal(e[None]).flatten() for e in torch.eye(WIDTH, dtype=torch.complex128)]
    return torch.stack(columns, dim=1).to(torch.complex128)


def posterior_mean(batch, split, noise):
    """E[x | z] in closed form, and z."""
    z = Sense(batch.sensitivity_maps, split.kept).adjoint(batch.kspace)
    basis = torch.stack([fft1c(e) for e in torch.eye(WIDTH, dtype=torch.complex128)], dim=1)
    c = basis.mH @ covariance(WIDTH).to(torch.complex128) @ basis
    h = dense_normal()
    gain = c @ h @ torch.linalg.pinv(h @ c @ h + noise**2 * h, rtol=1e-6)
    return on_columns(gain, z), z


def check_linear_minimiser(noise, tolerance, loss=WEIGHTED.on_split, damage=lambda split: split):
    batch, split = scans(noise, 2000)
    model = Linear()
    minimise(model, lambda: loss(model, batch, damage(split)), steps=150)
    expected, z = posterior_mean(batch, split, noise)
    found = model(z, noise, None).detach()
    assert float((found - expected).norm() / expected.norm()) < tolerance


@pytest.mark.parametrize(("noise", "tolerance"), [(0.0, 0.05), (0.5, 0.12)])
def test_weighted_minimiser_is_the_posterior_mean(noise, tolerance):
    check_linear_minimiser(noise, tolerance)


def test_a_network_of_any_capacity_finds_it_without_the_weights_too():
    check_linear_minimiser(0.5, 0.12, damage=unweighted)


def test_it_does_not_when_input_lines_are_scored_against_their_own_noise():
    def all_lines(denoiser, batch, split):
        """The broken loss: a part of the target's noise is in the input."""
        operator = Sense(batch.sensitivity_maps, split.kept)
        estimate = denoiser(operator.adjoint(batch.kspace), batch.noise_std, operator)
        residual = operator.with_mask(batch.mask).forward(estimate) - batch.kspace
        return (split.weights[:, None] * residual.abs() ** 2).mean()

    with pytest.raises(AssertionError):
        check_linear_minimiser(0.5, 0.12, loss=all_lines)


def check_limited_network(damage=lambda split: split):
    """One parameter, the size of a template: the best one on the lines that the input lacks, measured or not.

    It is 1 for the line that is measured most often and 3 for the others.
    """
    batch, split = scans(0.3, 2000)
    template = ifft1c(fft1c(batch.image) / (3 - 2 * torch.eye(WIDTH)[5]))

    def loss(theta):
        network = type("Template", (), {"config": Linear.config, "__call__": lambda self, *_: theta * template})()
        return float(SSDU().on_split(network, batch, damage(split)))

    low, middle, high = loss(-1.0), loss(0.0), loss(1.0)
    found = (low - high) / (2 * (low + high) - 4 * middle)
    missing = Sense(batch.sensitivity_maps, ~KEPT)
    seen, wanted = missing.forward(template), missing.forward(batch.image)
    best = float((seen.conj() * wanted).sum().real / seen.abs().square().sum())
    assert found == pytest.approx(best, rel=0.02)


def test_weights_make_a_limited_network_serve_all_missing_lines():
    check_limited_network()


def test_it_does_not_without_the_weights():
    with pytest.raises(AssertionError):
        check_limited_network(unweighted)


def test_published_loss_is_zero_for_the_answer_and_one_for_nothing():
    batch, split = scans(0.0, 5)
    for factor, expected in ((1.0, 0.0), (0.0, 1.0), (1.5, 0.5)):
        network = lambda z, sigma, operator, factor=factor: factor * batch.image  # noqa: E731
        value = SSDU(weighted=False).on_split(network, batch, split)
        measured = (batch.mask & ~split.kept).any((-2, -1)).float().mean()
        torch.testing.assert_close(value, expected * measured, rtol=1e-4, atol=1e-5)


def archive(items=6, shape=(4, 24)):
    generator = gaussian(5)  # not the loss's: equal numbers would draw the split as the mask was drawn
    maps = torch.ones(items, 1, *shape, dtype=torch.complex64)
    pattern = MaskPattern("random", 2.0, acs=4)
    mask = torch.stack([pattern.sample(shape, generator)[None] for _ in range(items)])
    image = complex_normal((items, *shape), generator, torch.device("cpu"))
    kspace = fft2c(image)[:, None] * mask[:, None]
    probability, acs = -torch.ones(items, 1, shape[1]), torch.full((items,), 4)
    return Batch(kspace, maps, mask, probability, acs, torch.full((items,), 0.1), image)


@pytest.mark.parametrize("weighted", [True, False])
def test_the_input_is_a_part_of_the_measured_lines_and_nothing_is_added(weighted):
    batch, seen = archive(), []

    def network(z, sigma, operator):
        seen.append((z, sigma, operator))
        return torch.zeros_like(z)

    network.config = Linear.config
    values = [SSDU(weighted, held_out=0.5).loss(network, batch, gaussian(3)) for _ in range(2)]
    assert values[0] == values[1] > 0
    split = further_undersample(batch, torch.full((len(batch),), 0.5), gaussian(3))
    z, sigma, operator = seen[0]
    assert torch.equal(operator.mask, split.kept)
    assert bool((split.kept <= batch.mask).all())
    assert bool(split.kept[..., 10:14].all())  # the centre
    assert 0.3 < float((batch.mask & ~split.kept).sum() / (batch.mask.sum() - 4 * len(batch))) < 0.7
    torch.testing.assert_close(fft2c(z), batch.kspace[:, 0] * split.kept)
    assert torch.equal(sigma, batch.noise_std)


# --- the unrolled network


def trained_like(config=SMALL):
    torch.manual_seed(0)
    model = Unrolled(config)
    nn.init.normal_(model.network.up_conv[-1][-1].weight, std=0.3)
    return model.eval()


def line_operator(shape, coils=2):
    maps = complex_normal((coils, *shape), gaussian(1), torch.device("cpu"))
    maps = maps / maps.abs().square().sum(0).sqrt()
    return Sense(maps, torch.arange(shape[1]) % 3 != 1)


@pytest.mark.parametrize("shape", [(16, 16), (17, 23), (4, 6), (5, 9), (3, 3)])
def test_any_size_with_and_without_operator(shape):
    model, z = trained_like(), complex_normal((2, *shape), gaussian(), torch.device("cpu"))
    assert model(z, 0.1).shape == z.shape
    operator = line_operator(shape)
    estimate = model(operator.normal(z), torch.tensor([0.1, 0.2]), operator)
    assert estimate.shape == z.shape
    assert estimate.dtype == torch.complex64
    assert bool(torch.isfinite(torch.view_as_real(estimate)).all())


def test_full_noiseless_data_are_returned_whatever_the_network_says():
    model, z = trained_like(), complex_normal((2, 8, 7), gaussian(), torch.device("cpu"))
    full = line_operator((8, 7)).with_mask(torch.ones(7))
    torch.testing.assert_close(model(z, 0.0), z)
    torch.testing.assert_close(model(z, 0.0, full), z, rtol=1e-4, atol=1e-5)
    assert float((model(z, 1.0) - z).detach().abs().max()) > 0.1


def test_measured_lines_stay_and_the_others_come_from_the_network():
    model, x = trained_like(), complex_normal((1, 8, 9), gaussian(), torch.device("cpu"))
    operator = Sense(torch.ones(1, 8, 9), torch.arange(9) % 3 != 1)  # one coil: lines are independent
    k = fft2c(model(operator.normal(x), 0.0, operator)).detach()
    torch.testing.assert_close(k[..., operator.mask[0]], fft2c(x)[..., operator.mask[0]], rtol=1e-4, atol=1e-4)
    assert float(k[..., ~operator.mask[0]].abs().min()) > 0


def test_a_full_mask_is_no_mask():
    model, z = trained_like(), complex_normal((2, 8, 7), gaussian(), torch.device("cpu"))
    full = line_operator((8, 7)).with_mask(torch.ones(7))
    torch.testing.assert_close(model(z, 0.1, full), model(z, 0.1), rtol=1e-3, atol=1e-3)


def test_untrained_it_follows_the_linear_estimate():
    """With U = 0 every round is a proximal step from the last; on full data the fixed point of all of them is z."""
    model, z = Unrolled(SMALL), complex_normal((2, 8, 8), gaussian(), torch.device("cpu"))
    ratio = (0.1 / (0.3 * SMALL.sigma_data)) ** 2
    distance = (0.1**2 / (0.1**2 + SMALL.sigma_data**2)) * (ratio / (1 + ratio)) ** SMALL.rounds
    torch.testing.assert_close(model(z, 0.1), (1 - distance) * z)


def test_an_intensity_factor_passes_through_the_u_net():
    model, image = trained_like(), complex_normal((1, 8, 8), gaussian(), torch.device("cpu"))
    torch.testing.assert_close(model._improved(3 * image), 3 * model._improved(image))


@pytest.mark.parametrize("weighted", [True, False])
def test_every_parameter_is_trained(weighted):
    model, batch = trained_like().train(), archive(shape=(8, 24))
    SSDU(weighted).loss(model, batch, gaussian()).backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    assert all(g is not None and bool(torch.isfinite(g).all()) for g in gradients.values())
    assert [name for name, g in gradients.items() if not bool(g.abs().max() > 0)] == []


def test_training_lowers_the_loss():
    batch = archive(items=16)
    torch.manual_seed(0)
    model = Unrolled(SMALL)
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(15):
        optimiser.zero_grad()
        losses.append(SSDU().loss(model, batch, gaussian()))
        losses[-1].backward()
        optimiser.step()
    assert losses[-1] < 0.97 * losses[0]


def test_config_round_trip():
    assert UnrolledConfig.from_dict(SMALL.to_dict()) == SMALL
