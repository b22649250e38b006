"""U-Net and VarNet: against fastMRI's own k-space form, on all sizes, trained and stored like every other network."""

import fastmri
import pytest
import torch
from torch import nn

from mri_ambient import baselines, training
from mri_ambient.baselines import Unet, UnetConfig, VarNet, VarNetConfig
from mri_ambient.config import TrainConfig
from mri_ambient.errors import InputError
from mri_ambient.methods import objective_of
from mri_ambient.objectives import Batch, EndToEnd
from mri_ambient.objectives.base import complex_normal
from mri_ambient.operators import MaskPattern, Sense
from mri_ambient.phantoms import phantom_volume
from mri_ambient.prior import load_prior, save_prior
from mri_ambient.recon import reconstruct
from mri_ambient.reporter import Silent
from mri_ambient.run_state import new_state
from mri_ambient.scan import load_scan, write_scan
from mri_ambient.simulate import simulate_scan
from mri_ambient.training import train
from mri_ambient.training_data import load_data
from mri_ambient.validation import validate

SMALL = UnetConfig(channels=4, levels=2)
SMALL_VARNET = VarNetConfig(channels=4, levels=2, cascades=3)
SETTINGS = {"preset": "tiny", "batch": 2, "images": 8, "accel": 2, "device": "cpu", "precision": "fp32"}


@pytest.fixture(autouse=True)
def smallest_networks(monkeypatch):
    monkeypatch.setitem(baselines.UNET_PRESETS, "tiny", SMALL)
    monkeypatch.setitem(baselines.VARNET_PRESETS, "tiny", SMALL_VARNET)


def draw(shape, seed):
    return complex_normal(shape, torch.Generator().manual_seed(seed), torch.device("cpu"))


def operator(shape, accel=2.0, two_dimensional=False, batch=2, holes=True):
    """Normalised maps, zero in a corner as outside a head, and a mask an item."""
    maps = draw((batch, 3, *shape), 1)
    maps = maps / maps.abs().square().sum(1, keepdim=True).sqrt()
    if holes:
        maps[..., :5, :5] = 0
    rows = shape[0] if two_dimensional else 1
    mask = torch.rand(batch, rows, shape[1], generator=torch.Generator().manual_seed(2)) < 1 / accel
    return Sense(maps, mask)


def randomised(network, seed=0):
    """Random weights in all layers, those that start at zero too, and a different step in every cascade."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=0.3)
    return network.eval().requires_grad_(False)


def pairs(x):
    return torch.view_as_real(x)


def fastmri_varnet(network, kspace, op):
    """The cascades as fastMRI runs them, in multi-coil k-space; combined with the maps at the end."""
    mask = op.mask.expand(op.image_shape)[:, None, :, :, None]
    current, measured, maps = pairs(kspace), pairs(kspace), pairs(op.sensitivity_maps)
    for cascade in network.network:
        current = cascade(current, measured, mask, maps)
    combined = fastmri.complex_mul(fastmri.ifft2c(current), fastmri.complex_conj(maps)).sum(1)
    return torch.view_as_complex(combined.contiguous())


@pytest.mark.parametrize(("accel", "two_dimensional"), [(1.0, False), (2.0, False), (2.0, True)])
@pytest.mark.parametrize("shape", [(32, 48), (37, 29)])
def test_varnet_in_images_is_fastmris_in_kspace(shape, accel, two_dimensional):
    op = operator(shape, accel, two_dimensional)
    kspace = op.forward(draw(op.image_shape, 3)) + 0.1 * op.mask[:, None] * draw(op.kspace_shape, 4)
    network = randomised(VarNet(SMALL_VARNET))
    found, expected = network(op.adjoint(kspace), 0.1, op), fastmri_varnet(network, kspace, op)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_without_an_operator_everything_counts_as_sampled():
    op = operator((32, 40), 1.0, holes=False)
    network, z = randomised(VarNet(SMALL_VARNET)), draw((2, 32, 40), 3)
    torch.testing.assert_close(network(z, 0.0), network(z, 0.0, op), rtol=1e-4, atol=1e-4)


def test_varnet_keeps_fully_sampled_noiseless_images_when_its_networks_are_silent():
    class Silent(nn.Module):
        def forward(self, x):
            return torch.zeros_like(x)

    op, network = operator((32, 40), 1.0), VarNet(SMALL_VARNET)
    for cascade, step in zip(network.network, (0.3, 1.0, 1.7), strict=True):
        cascade.model = Silent()
        cascade.dc_weight.data.fill_(step)
    image = draw((2, 32, 40), 3) * op.sensitivity_maps.any(1)
    torch.testing.assert_close(network(op.adjoint(op.forward(image)), 0.0, op), image, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("network", [Unet(SMALL), VarNet(SMALL_VARNET)], ids=["unet", "varnet"])
@pytest.mark.parametrize("shape", [(32, 48), (37, 29), (18, 61)])
def test_any_size_and_any_unit(network, shape):
    op, network = operator(shape), randomised(network)
    z = draw(op.image_shape, 3)
    result = network(z, 0.1, op)
    assert result.shape == (2, *shape)
    assert result.dtype == torch.complex64
    torch.testing.assert_close(network(1000 * z, 0.1, op), 1000 * result, rtol=1e-3, atol=1e-2)
    alone = network(z[:1], 0.1, Sense(op.sensitivity_maps[:1], op.mask[:1]))
    torch.testing.assert_close(alone, result[:1], rtol=1e-4, atol=1e-4)


def test_loss_is_the_squared_error_over_what_one_expects():
    op, x = operator((32, 32)), draw((2, 32, 32), 3)
    level, missing = torch.tensor([0.1, 0.2]), 1 - op.mask.float().mean((-2, -1))
    nothing = torch.empty(0)
    batch = Batch(op.forward(x), op.sensitivity_maps, op.mask, nothing, nothing, level, x)

    class Wrong:
        config = SMALL

        def __call__(self, z, sigma, op):
            torch.testing.assert_close(z, op.adjoint(op.forward(x)))
            return x + torch.tensor([0.3, 0.5])[:, None, None]

    variance = SMALL.sigma_data**2
    expected = level**2 * variance / (level**2 + variance) + 0.1 * variance * missing
    loss = EndToEnd().loss(Wrong(), batch, torch.Generator())
    assert float(loss) == pytest.approx(float((torch.tensor([0.09, 0.25]) / expected).mean()), rel=1e-4)


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """Fully sampled k-space of two patients."""
    folder = tmp_path_factory.mktemp("scans")
    for i in range(2):
        volume = phantom_volume(2, (48, 48), seed=i)
        write_scan(simulate_scan(volume, coils=3, noise_std=0.02, name=f"scan{i}"), folder / f"scan{i}.h5")
    return folder


@pytest.mark.parametrize("method", ["unet", "varnet"])
def test_training_lowers_the_loss_on_whole_slices(scans, tmp_path, method):
    config = TrainConfig(method=method, preset="tiny", batch=2, images=60, accel=2, learning_rate=5e-3)
    data, _ = load_data([scans], [], config, tmp_path, Silent())
    batch = training.examples(data, config, torch.Generator().manual_seed(0))
    assert batch.image.shape == (2, 48, 48)
    state = new_state(config, torch.device("cpu"), torch.float32)
    objective = objective_of(config)
    losses = [training.train_step(config, state, objective, batch)[0] for _ in range(30)]
    assert losses[-1] < 0.85 * losses[0]


@pytest.mark.parametrize(("method", "rows"), [("unet", 48), ("varnet", 48), ("supervised", 16)])
def test_validation_shows_what_training_does(scans, tmp_path, monkeypatch, method, rows):
    config = TrainConfig(method=method, preset="tiny", batch=2, strip=16, accel=2)
    data, _ = load_data([scans], [], config, tmp_path, Silent())
    state = new_state(config, torch.device("cpu"), torch.float32)
    seen, forward = [], type(state.average).forward
    monkeypatch.setattr(
        type(state.average), "forward", lambda self, z, *rest: seen.append(z.shape[-2]) or forward(self, z, *rest)
    )
    validate(state.average, data, config)
    assert set(seen) == {rows}


@pytest.mark.parametrize("method", ["unet", "varnet"])
def test_a_run_gives_a_network_that_reconstructs_and_nothing_else(scans, tmp_path, method):
    run = train([scans], out=tmp_path / "run", method=method, **SETTINGS)
    assert run.card["method"] == method
    assert "denoiser_error" not in run.card
    scan = load_scan(scans / "scan0.h5").undersample(MaskPattern("random", 2).sample((48, 48)))
    result = reconstruct(scan, str(run.folder), method="mmse")
    assert bool(torch.isfinite(result.mean.abs()).all())
    with pytest.raises(InputError, match=rf"is a reconstruction network \({method}\), not a prior: use --method mmse"):
        reconstruct(scan, str(run.folder), samples=1, steps=1)


@pytest.mark.parametrize("network", [Unet(SMALL), VarNet(SMALL_VARNET)], ids=["unet", "varnet"])
def test_files_hold_the_same_network(network, tmp_path):
    op, z = operator((32, 48)), draw((2, 32, 48), 3)
    randomised(network).half().float()
    save_prior(tmp_path / "p.safetensors", network, {})
    loaded = load_prior(tmp_path / "p.safetensors").denoiser
    assert type(loaded) is type(network)
    assert loaded.config == network.config
    torch.testing.assert_close(loaded(z, 0.1, op), network(z, 0.1, op))


def test_they_need_references_and_no_prior(tmp_path):
    scan = simulate_scan(phantom_volume(1, (48, 48), seed=0), coils=2, pattern=MaskPattern("random", 2))
    write_scan(scan, tmp_path / "scan.h5")
    with pytest.raises(InputError, match="needs fully sampled scans"):
        train([tmp_path / "scan.h5"], out=tmp_path / "run", method="varnet", **SETTINGS)
    with pytest.raises(InputError, match="unet does not start from another prior"):
        train([tmp_path / "scan.h5"], out=tmp_path / "run", method="unet", init="brain", **SETTINGS)


def test_the_published_sizes():
    """Parameters of fastMRI's U-Net with 32 channels and of its VarNet without the network for the maps."""
    sizes = [Unet(UnetConfig(32)), VarNet(VarNetConfig())]
    assert [sum(p.numel() for p in network.parameters()) for network in sizes] == [7_756_418, 29_452_068]
