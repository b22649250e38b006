"""Everything that changes during training, and the file it is saved in.

One safetensors file holds weights, averaged weights, optimiser moments and counters. It is replaced as a whole, so that
a run that is killed at any moment continues from the last complete state.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from mri_ambient.baselines import UNET_PRESETS, VARNET_PRESETS, Unet, VarNet
from mri_ambient.config import TrainConfig
from mri_ambient.dataset import write_atomically
from mri_ambient.denoiser import PRESETS, Denoiser, set_precision
from mri_ambient.errors import InputError
from mri_ambient.objectives.bootstrap import ComposedDenoiser, View, parse_view, view_config, view_from_dict
from mri_ambient.optimiser import optimisers
from mri_ambient.prior import Prior, load_prior
from mri_ambient.streams import stream
from mri_ambient.unrolled import Unrolled, UnrolledConfig

VIEW_WIDTH = 160  # columns of a typical image, of which a view has its share


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
    init_hash : str
        Of the prior that training started from; empty if it started from scratch.
    """

    denoiser: Denoiser
    average: Denoiser
    optimisers: tuple[torch.optim.Optimizer, ...]
    step: int = 0
    refreshed: int = 0
    skipped: int = 0
    seconds: float = 0.0
    init_hash: str = ""


def choose_device(device: str, precision: str) -> tuple[torch.device, torch.dtype]:
    """Resolve "auto".

    Raises
    ------
    InputError
        If the name is unknown, or such a CUDA device is absent.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, number = device.partition(":")
    if kind not in ("cpu", "cuda") or not (number.isdigit() or device == kind):
        raise InputError(f"The device {device!r} is not one of auto, cpu, cuda, cuda:N.")
    count = torch.cuda.device_count() if kind == "cuda" else 1
    if int(number or 0) >= count:
        raise InputError(f"The device {device} was not found, there are {count} of its kind: use --device cpu.")
    table = {"bf16": torch.bfloat16, "fp32": torch.float32}
    if precision not in ("auto", *table):
        raise InputError(f"The precision {precision!r} is not one of auto, bf16, fp32.")
    if precision == "auto":
        fast = torch.cuda.is_bf16_supported(False) if kind == "cuda" else torch.cpu._is_avx512_bf16_supported()
        precision = "bf16" if fast else "fp32"
    return torch.device(device), table[precision]


def new_state(config: TrainConfig, device: torch.device, precision: torch.dtype) -> State:
    """Fresh (or initialised) weights and optimiser."""
    torch.manual_seed(int(torch.randint(2**31, (), generator=stream(config.seed, "weights"))))
    denoiser, init_hash = new_network(config), ""
    if config.init is not None:
        initial = load_prior(config.init)
        require_same_network(initial, denoiser, config)
        denoiser.load_state_dict(initial.denoiser.state_dict())
        init_hash = initial.hash
    average = new_network(config)
    average.load_state_dict(denoiser.state_dict())
    for model in (denoiser, average):
        model.to(device).to(memory_format=torch.channels_last)
        set_precision(model, precision)
    average.eval().requires_grad_(False)
    return State(denoiser, average, optimisers(denoiser, config.learning_rate, precision), init_hash=init_hash)


def require_same_network(initial: Prior, network: Denoiser, config: TrainConfig) -> None:
    """Refuse to start a network from the prior of another one.

    Raises
    ------
    InputError
        If kind or size differ, with the preset that fits.
    """
    if type(initial.denoiser) is not type(network) or "view" in initial.card:
        raise InputError(
            f"{config.init} does not hold a denoiser of images (method {initial.card.get('method')}), so that --method "
            f"{config.method} cannot start from it: name a prior trained with --method ambient, for example."
        )
    if initial.denoiser.config != network.config:
        fitting = [name for name, size in PRESETS.items() if size == initial.denoiser.config]
        advice = f": use --preset {fitting[0]}" if fitting else ""
        raise InputError(f"The prior {config.init} has another size than preset {config.preset}{advice}.")


def new_network(config: TrainConfig) -> Denoiser:
    """The network that a method trains.

    Raises
    ------
    InputError
        If a view or the prior of one cannot be used.
    """
    size = PRESETS[config.preset]
    if config.method == "ssdu":
        return cast(Denoiser, Unrolled(UnrolledConfig()))
    if config.method == "unet":
        return cast(Denoiser, Unet(UNET_PRESETS[config.preset]))
    if config.method == "varnet":
        return cast(Denoiser, VarNet(VARNET_PRESETS[config.preset]))
    if config.view:
        return Denoiser(view_config(size, parse_view(config.view), VIEW_WIDTH))
    if config.views:
        return ComposedDenoiser(size, [_view_denoiser(name) for name in config.views])
    return Denoiser(size)


def _view_denoiser(name: str) -> tuple[View, Denoiser]:
    prior = load_prior(name)
    if "view" not in prior.card:
        raise InputError(f"{name} is not the prior of a view: train one with --method bootstrap --view.")
    return view_from_dict(prior.card["view"]), prior.denoiser


def save(folder: Path, state: State) -> None:
    """Write weights, averaged weights, optimiser moments and counters, atomically."""
    from safetensors.torch import save as serialise

    tensors = {f"weights.{k}": v for k, v in state.denoiser.state_dict().items()}
    tensors |= {f"average.{k}": v for k, v in state.average.state_dict().items()}
    for number, optimiser in enumerate(state.optimisers):
        moments = optimiser.state_dict()["state"]
        tensors |= {f"optimiser.{number}.{i}.{k}": v for i, entry in moments.items() for k, v in entry.items()}
    counters = {k: getattr(state, k) for k in ("step", "refreshed", "skipped", "seconds", "init_hash")}
    content = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    write_atomically(folder / "state.safetensors", serialise(content, {"counters": json.dumps(counters)}))


def restore(folder: Path, state: State) -> None:
    """Load the state that `save` wrote, if there is one.

    Raises
    ------
    InputError
        If its file is damaged.
    """
    from safetensors import SafetensorError, safe_open

    path = folder / "state.safetensors"
    if not path.exists():
        return
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
            counters = json.loads(file.metadata()["counters"])
    except (SafetensorError, ValueError, LookupError, TypeError) as error:
        raise InputError(
            f"{path} is damaged and training cannot continue from it: remove {folder} to begin it anew."
        ) from error
    for model, prefix in ((state.denoiser, "weights."), (state.average, "average.")):
        model.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
    for number, optimiser in enumerate(state.optimisers):
        prefix = f"optimiser.{number}."
        _restore_moments(optimiser, {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
    for name, value in counters.items():
        setattr(state, name, value)


def _restore_moments(optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Hand an optimiser its moments, named ``parameter.moment``."""
    moments: dict[int, dict[str, Tensor]] = {}
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    for key, value in tensors.items():
        index, name = key.split(".")
        if name != "step":  # the fused optimiser goes through memory in order: moments need the strides of weights
            value = torch.empty_like(parameters[int(index)]).copy_(value)
        moments.setdefault(int(index), {})[name] = value
    if moments:
        optimiser.load_state_dict({"state": moments, "param_groups": optimiser.state_dict()["param_groups"]})
