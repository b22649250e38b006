"""Prior files: round trip, names, and what is refused."""

import json

import pytest
import torch
from safetensors.torch import save_file

from mri_ambient.denoiser import Denoiser, DenoiserConfig
from mri_ambient.errors import InputError
from mri_ambient.objectives.bootstrap import CentreView, ComposedDenoiser, WholeView
from mri_ambient.prior import FORMAT, Prior, load_prior, prior_label, read_card, save_prior, shipped_priors
from mri_ambient.unrolled import Unrolled, UnrolledConfig

SIZE = DenoiserConfig(channels=(4, 8), embedding=8)


@pytest.fixture
def path(tmp_path):
    torch.manual_seed(0)
    model = Denoiser(SIZE)
    save_prior(
        tmp_path / "prior.safetensors", model, {"method": "ambient", "denoiser_error": [[0.01, 0.004], [1, 0.1]]}
    )
    return tmp_path / "prior.safetensors"


def test_round_trip_by_file_and_by_run_folder(path):
    prior = load_prior(path)
    assert prior.card["method"] == "ambient"
    assert prior.denoiser.config == SIZE
    assert load_prior(path.parent).hash == prior.hash
    assert not any(p.requires_grad for p in prior.denoiser.parameters())
    assert read_card(path)["parameters"] == sum(p.numel() for p in prior.denoiser.parameters())


def test_a_prior_in_a_run_folder_is_called_after_it(path, monkeypatch):
    folder = path.parent.rename(path.parent.with_name("ambient-r2.5"))
    assert [load_prior(place).name for place in (folder, str(folder), folder / path.name)] == ["ambient-r2.5"] * 3
    monkeypatch.chdir(folder)
    assert [prior_label(place) for place in (".", path.name)] == ["ambient-r2.5"] * 2
    (folder / path.name).rename(folder / "mine.safetensors")
    assert load_prior(folder / "mine.safetensors").name == "mine"
    assert prior_label("brain-r4") == "brain-r4"


def test_error_is_interpolated_and_falls_back_to_the_linear_denoiser(path):
    prior = load_prior(path)
    assert prior.error.rms(0.1) == pytest.approx(0.02)  # the geometric mean half-way in the logarithm
    assert prior.error.rms(0.01) == pytest.approx(0.004)
    linear = 5 * SIZE.sigma_data / (25 + SIZE.sigma_data**2) ** 0.5
    assert prior.error.rms(5.0) == pytest.approx(linear)
    assert Prior(prior.denoiser, {}, "x", "y").error.rms(5.0) == pytest.approx(linear)


def test_hash_tells_weights_apart(path, tmp_path):
    other = Denoiser(SIZE)
    with torch.no_grad():
        other.network.head.bias += 1
    save_prior(tmp_path / "other.safetensors", other, {})
    assert load_prior(tmp_path / "other.safetensors").hash != load_prior(path).hash


@pytest.mark.parametrize(
    "network",
    [
        ComposedDenoiser(SIZE, [(CentreView(5), Denoiser(SIZE)), (WholeView(), Denoiser(SIZE))]),
        Unrolled(UnrolledConfig(rounds=1, channels=2, levels=1)),
    ],
    ids=["composed", "unrolled"],
)
def test_other_networks_come_back(network, tmp_path):
    save_prior(tmp_path / "p.safetensors", network, {})
    loaded = load_prior(tmp_path / "p.safetensors").denoiser
    assert type(loaded) is type(network)
    for name, value in network.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], value.half().float())


def test_files_that_are_not_priors(path, tmp_path):
    with pytest.raises(InputError, match="no prior 'nothing'"):
        load_prior("nothing")
    (tmp_path / "text.safetensors").write_text("not weights")
    with pytest.raises(InputError, match="not a prior of mri-ambient"):
        load_prior(tmp_path / "text.safetensors")
    save_file({"a": torch.zeros(2)}, tmp_path / "foreign.safetensors")
    with pytest.raises(InputError, match="is missing"):
        load_prior(tmp_path / "foreign.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="not a prior"):
        load_prior(tmp_path / "cut.safetensors")
    metadata = {"format": FORMAT, "config": json.dumps(SIZE.to_dict()), "card": "{}"}
    save_file({"a": torch.zeros(2)}, tmp_path / "damaged.safetensors", metadata)
    with pytest.raises(InputError, match="damaged"):
        load_prior(tmp_path / "damaged.safetensors")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no finished prior"):
        load_prior(tmp_path / "empty")


def test_shipped_priors_are_small_and_have_cards():
    assert "brain" in shipped_priors()
    for name, file in shipped_priors().items():
        assert file.stat().st_size < 10e6
        card = read_card(name)
        assert {"data", "method", "acceleration", "noise_std", "images", "training_seconds"} <= set(card)
        assert load_prior(name).name == name
