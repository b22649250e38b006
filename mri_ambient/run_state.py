"""Everything that changes during training, and the file it is saved in.

One safetensors file holds weights, averaged weights, optimiser moments and counters. It is replaced as a whole, so that
a run that is killed at any moment continues from the last complete state.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mri_ambient.config import TrainConfig
from mri_ambient.dataset import write_atomically
from mri_ambient.denoiser import PRESETS, Denoiser, DenoiserConfig
from mri_ambient.errors import InputError
from mri_ambient.prior import load_prior
from mri_ambient.streams import stream


@dataclass
class State:
    """Everything that changes during training.

    Attributes
    ----------
    step : int
        Steps done.
    refreshed : int
        How often the reconstructions were made anew.
    skipped : int
        Steps whose loss or gradient was not finite.
    seconds : float
        Time spent in training so far.
    """

    denoiser: Denoiser
    average: Denoiser
    optimiser: torch.optim.Optimizer
    step: int = 0
    refreshed: int = 0
    skipped: int = 0
    seconds: float = 0.0


def new_state(config: TrainConfig, device: torch.device, precision: torch.dtype) -> State:
    """Fresh (or initialised) weights and optimiser."""
    torch.manual_seed(int(torch.randint(2**31, (), generator=stream(config.seed, "weights"))))
    size: DenoiserConfig = PRESETS[config.preset]
    denoiser = Denoiser(size)
    if config.init is not None:
        initial = load_prior(config.init).denoiser
        if initial.config != size:
            raise InputError(f"The prior {config.init} has another size than preset {config.preset}.")
        denoiser.load_state_dict(initial.state_dict())
    average = Denoiser(size)
    average.load_state_dict(denoiser.state_dict())
    for model in (denoiser, average):
        model.to(device).to(memory_format=torch.channels_last)
        model.precision = precision
    average.eval().requires_grad_(False)
    optimiser = torch.optim.Adam(denoiser.parameters(), lr=config.learning_rate, betas=(0.9, 0.99), fused=True)
    return State(denoiser, average, optimiser)


def save(folder: Path, state: State) -> None:
    """Write weights, averaged weights, optimiser moments and counters, atomically."""
    from safetensors.torch import save as serialise

    tensors = {f"weights.{k}": v for k, v in state.denoiser.state_dict().items()}
    tensors |= {f"average.{k}": v for k, v in state.average.state_dict().items()}
    moments = state.optimiser.state_dict()["state"]
    tensors |= {f"optimiser.{i}.{k}": v for i, entry in moments.items() for k, v in entry.items()}
    counters = {k: getattr(state, k) for k in ("step", "refreshed", "skipped", "seconds")}
    content = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    write_atomically(folder / "state.safetensors", serialise(content, {"counters": json.dumps(counters)}))


def restore(folder: Path, state: State) -> None:
    """Load the state that `save` wrote, if there is one."""
    from safetensors import safe_open

    path = folder / "state.safetensors"
    if not path.exists():
        return
    with safe_open(path, framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
        counters = json.loads(file.metadata()["counters"])
    for model, prefix in ((state.denoiser, "weights."), (state.average, "average.")):
        model.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
    moments: dict[int, dict[str, Tensor]] = {}
    parameters = list(state.denoiser.parameters())
    for key, value in tensors.items():
        if key.startswith("optimiser."):
            _, index, name = key.split(".")
            if (
                name != "step"
            ):  # the fused optimiser goes through memory in order: moments need the strides of their weights
                value = torch.empty_like(parameters[int(index)]).copy_(value)
            moments.setdefault(int(index), {})[name] = value
    if moments:
        state.optimiser.load_state_dict(
            {"state": moments, "param_groups": state.optimiser.state_dict()["param_groups"]}
        )
    for name, value in counters.items():
        setattr(state, name, value)
