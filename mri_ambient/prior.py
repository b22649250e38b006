"""Priors: a trained denoiser with its card, in one safetensors file without code.

The JSON metadata state what the weights mean (FFT convention, scale rule, network size) and where they come from (data,
accelerations, noise, training length). A prior is named by a shipped name, a file, or the folder of a training run.
"""

import hashlib
import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from mri_ambient.baselines import Unet, UnetConfig, VarNet, VarNetConfig
from mri_ambient.denoiser import Denoiser, DenoiserConfig
from mri_ambient.denoiser_error import DenoiserError
from mri_ambient.errors import InputError
from mri_ambient.objectives.bootstrap import ComposedDenoiser, experts_from_dict, experts_to_dict
from mri_ambient.operators import CgSolver, RowSolver, Sense
from mri_ambient.posterior import ERROR_FACTOR, SPREAD_FACTOR, PosteriorDenoiser
from mri_ambient.unrolled import Unrolled, UnrolledConfig

FORMAT = "mri-ambient prior 1"
CONVENTIONS = {
    "fft": "centred, orthonormal",
    "scale": "twice the energy-weighted RMS intensity of the fully sampled centre is 1, per volume",
    "noise": "standard deviation per real and per imaginary component",
    "axes": "y readout, x phase encoding (last)",
}
RUN_FILE = "prior.safetensors"
DEFAULT_PRIOR = "brain"
DEFAULT_IS = "brain-full"  # the shipped prior that this name stands for


@dataclass(frozen=True)
class Prior:
    """A denoiser and its card.

    Attributes
    ----------
    denoiser : Denoiser
    card : dict
        What is known about its training; JSON values.
    name : str
    hash : str
        First 16 hexadecimal digits of the SHA-256 of the weights.
    """

    denoiser: Denoiser
    card: dict[str, Any]
    name: str
    hash: str

    @property
    def error(self) -> DenoiserError:
        """Error of the full-mask denoiser, from the table that the end of training wrote to the card."""
        return DenoiserError(self.card.get("denoiser_error", []), self.denoiser.config.sigma_data)

    def posterior(
        self, kspace: Tensor, operator: Sense, noise_std: float, solver: RowSolver | CgSolver | None = None
    ) -> PosteriorDenoiser:
        """The denoiser wrapped by a measured slice; see `PosteriorDenoiser` for the arguments."""
        error = self.error
        return PosteriorDenoiser(
            self.denoiser,
            kspace,
            operator,
            noise_std,
            lambda sigma: ERROR_FACTOR * error.rms(sigma),
            solver,
            lambda sigma: SPREAD_FACTOR * error.spectrum(sigma, operator.image_shape),
        )

    def to(self, device: torch.device | str) -> "Prior":
        """Move the weights to a device."""
        self.denoiser.to(device)
        return self


def weights_hash(weights: dict[str, Tensor]) -> str:
    """Hash of named tensors, independent of their device."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode())
        digest.update(weights[name].detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def save_prior(path: str | Path, denoiser: nn.Module, card: dict[str, Any]) -> None:
    """Write a prior in half precision; the file appears under its final name only when complete.

    Parameters
    ----------
    path : path
        Usually ends in .safetensors.
    denoiser : Denoiser, ComposedDenoiser, Unrolled, Unet or VarNet
    card : dict
        JSON values.
    """
    from safetensors.torch import save

    from mri_ambient.dataset import write_atomically

    metadata = {
        "format": FORMAT,
        "config": json.dumps(denoiser.config.to_dict()),  # type: ignore[operator, union-attr]
        "network": network_kind(denoiser),
        "conventions": json.dumps(CONVENTIONS),
        "card": json.dumps(card),
    }
    if isinstance(denoiser, ComposedDenoiser):
        metadata["experts"] = json.dumps(experts_to_dict(denoiser))
    tensors = {name: value.detach().cpu().half().contiguous() for name, value in denoiser.state_dict().items()}
    write_atomically(Path(path), save(tensors, metadata))


def load_prior(name: str | Path = DEFAULT_PRIOR, device: torch.device | str = "cpu") -> Prior:
    """Load a prior by shipped name, checkpoint file, or run folder.

    Parameters
    ----------
    name : str or path
    device : str or torch.device

    Raises
    ------
    InputError
        If there is no such prior, or the file is not one.
    """
    path = find_prior(name)
    metadata, weights = _read(path)
    denoiser = _network(metadata)
    try:
        denoiser.load_state_dict({k: v.float() for k, v in weights.items()})
    except RuntimeError as error:
        raise InputError(f"The weights in {path} do not fit the network they describe; the file is damaged.") from error
    denoiser = denoiser.to(device).to(memory_format=torch.channels_last).eval().requires_grad_(False)
    return Prior(denoiser, json.loads(metadata["card"]), prior_label(name), weights_hash(weights))


def network_kind(network: nn.Module) -> str:
    """Name of a network's class in prior files."""
    kinds = {ComposedDenoiser: "composed", Denoiser: "denoiser", Unrolled: "unrolled", Unet: "unet", VarNet: "varnet"}
    return kinds[type(network)]


def _network(metadata: dict[str, str]) -> Denoiser:
    """The network that a prior file describes, with fresh weights."""
    values, kind = json.loads(metadata["config"]), metadata.get("network", "denoiser")
    if kind == "composed":
        return experts_from_dict(DenoiserConfig.from_dict(values), json.loads(metadata["experts"]))
    if kind == "unrolled":
        return cast(Denoiser, Unrolled(UnrolledConfig.from_dict(values)))
    if kind == "unet":
        return cast(Denoiser, Unet(UnetConfig.from_dict(values)))
    if kind == "varnet":
        return cast(Denoiser, VarNet(VarNetConfig.from_dict(values)))
    return Denoiser(DenoiserConfig.from_dict(values))


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is not a prior of mri-ambient (not a readable safetensors file).") from error
    if metadata.get("format") != FORMAT:
        raise InputError(f"{path} is a safetensors file but not a prior of mri-ambient ({FORMAT!r} is missing).")
    return metadata, weights


def find_prior(name: str | Path) -> Path:
    """Resolve a shipped name, a file, or a run folder to a file.

    Raises
    ------
    InputError
        If there is none.
    """
    path = Path(name)
    if str(name) in shipped_priors():
        return shipped_priors()[str(name)]
    if path.is_dir():
        if (path / RUN_FILE).exists():
            return path / RUN_FILE
        raise InputError(f"The folder {path} holds no finished prior ({RUN_FILE} is missing).")
    if path.is_file():
        return path
    raise InputError(
        f"There is no prior {str(name)!r}: give a file, a run folder, or one of {', '.join(shipped_priors())}."
    )


def prior_label(name: str | Path) -> str:
    """What a prior is called in results and tables: its shipped name, or that of its run folder or file."""
    if str(name) in shipped_priors():
        return str(name)
    path = Path(name)
    if path.is_dir():
        path /= RUN_FILE
    return path.parent.resolve().name if path.name == RUN_FILE else path.stem


def shipped_priors() -> dict[str, Path]:
    """Names and files of the priors that come with the package; the default stands for one of the others."""
    folder = Path(str(resources.files("mri_ambient.weights")))
    found = {path.stem: path for path in sorted(folder.glob("*.safetensors"))}
    return {DEFAULT_PRIOR: found[DEFAULT_IS], **found}


def read_card(name: str | Path) -> dict[str, Any]:
    """The card of a prior, with its size; the weights are not loaded into a network.

    Raises
    ------
    InputError
        As `load_prior`.
    """
    metadata, weights = _read(find_prior(name))
    card: dict[str, Any] = json.loads(metadata["card"])
    return {**card, "parameters": sum(w.numel() for w in weights.values()), "hash": weights_hash(weights)}
