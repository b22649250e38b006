"""The multi-coil forward model against the bare FFTs it contains, a plain fftshift form, SigPy, deepinv and mrpro.

    python benchmarks/operators.py --coils 16 --size 320 320 --runs 20

Bare FFTs: the same number of transforms of a stack of coil images of the same size, and nothing else; for the normal
operator of a line mask these are transforms along the phase-encode axis alone, all that this problem needs. "Gradient"
is the operator and the gradient of ``Re <w, operator(x)>`` with respect to the image. "Kept memory" is the setting that
this package trains and samples with (`mri_ambient.allocator`); it serves all programs alike.

Error: relative, against a computation in double precision by the plain form.
"""

import argparse
import warnings
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import measure

if TYPE_CHECKING:
    from torch import Tensor

OURS, BARE, PLAIN = "mri-ambient", "bare FFTs", "fftshift form"


class Case(NamedTuple):
    """What the programs are given: image (..., y, x), maps (..., coil, y, x), mask (y or 1, x), cotangents."""

    image: "Tensor"
    maps: "Tensor"
    mask: "Tensor"
    image_weight: "Tensor"
    kspace: "Tensor"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--coils", type=int, default=16)
    parser.add_argument("--size", type=int, nargs=2, default=(320, 320), metavar=("Y", "X"))
    parser.add_argument("--batch", type=int, nargs=4, metavar=("SLICES", "COILS", "Y", "X"), default=(8, 8, 256, 256))
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--threads", type=int, help="for all programs; by default each decides")
    return parser.parse_args()


def make_case(shape: tuple[int, ...], line_mask: bool) -> Case:
    """Random maps (..., coil, y, x), normalised, and R = 4."""
    import torch

    from mri_ambient.operators import random_mask

    generator = torch.Generator().manual_seed(0)
    draw = partial(torch.randn, dtype=torch.complex64, generator=generator)
    image_shape = (*shape[:-3], *shape[-2:])
    maps = draw(*shape)
    maps = maps / torch.linalg.vector_norm(maps, dim=-3, keepdim=True)
    line = random_mask(shape[-1], 4, generator=generator)[None]
    plane = torch.rand(shape[-2:], generator=generator) < 0.25
    return Case(draw(*image_shape), maps, line if line_mask else plane, draw(*image_shape), draw(*shape))


def plain_form(case: Case) -> dict[str, Callable[["Tensor"], "Tensor"]]:
    """The formula as written, with shifts."""
    from mri_ambient.operators import fft2c, ifft2c

    def forward(image: "Tensor") -> "Tensor":
        return case.mask * fft2c(case.maps * image.unsqueeze(-3))

    def adjoint(kspace: "Tensor") -> "Tensor":
        return (case.maps.conj() * ifft2c(case.mask * kspace)).sum(-3)

    return {"forward": forward, "adjoint": adjoint, "normal": lambda image: adjoint(forward(image))}


def package_form(case: Case) -> dict[str, Callable[["Tensor"], "Tensor"]]:
    from mri_ambient.operators import Sense

    operator = Sense(case.maps, case.mask)
    return {"forward": operator.forward, "adjoint": operator.adjoint, "normal": operator.normal}


def sigpy_form(case: Case) -> dict[str, Callable[["Tensor"], "Tensor"]]:
    """SigPy's operator of each slice, as it takes no batch of maps; without gradients."""
    import torch
    from sigpy.mri.linop import Sense

    shape = case.maps.shape
    weights = case.mask.expand(shape[-2:]).numpy().astype("float32")
    models = [Sense(maps.numpy(), weights=weights) for maps in case.maps.reshape(-1, *shape[-3:])]
    linops = {"forward": models, "adjoint": [m.H for m in models], "normal": [m.N for m in models]}

    def apply(name: str, x: "Tensor") -> "Tensor":
        items = x.reshape(len(models), *linops[name][0].ishape)
        results = [torch.from_numpy(op(item.numpy())) for op, item in zip(linops[name], items, strict=True)]
        return torch.stack(results) if len(shape) > 3 else results[0]

    return {name: partial(apply, name) for name in linops}


def deepinv_form(case: Case) -> dict[str, Callable[["Tensor"], "Tensor"]]:
    """deepinv's physics takes and gives real channels (batch, 2, ...); the conversion costs a copy at most."""
    import torch
    from deepinv.physics import MultiCoilMRI

    maps = case.maps.reshape(-1, *case.maps.shape[-3:])
    physics = MultiCoilMRI(mask=case.mask.expand(maps.shape[-2:]).float(), coil_maps=maps)

    def channels(function: Callable[["Tensor"], "Tensor"], core: int, x: "Tensor") -> "Tensor":
        batch = x.reshape(-1, *x.shape[-core:])
        out = torch.view_as_complex(function(torch.view_as_real(batch).movedim(-1, 1)).movedim(1, -1).contiguous())
        return out.reshape(*case.maps.shape[:-3], *out.shape[1:])

    return {
        "forward": partial(channels, physics.A, 2),
        "adjoint": partial(channels, physics.A_adjoint, 3),
        "normal": partial(channels, physics.A_adjoint_A, 2),
    }


def mrpro_form(case: Case) -> dict[str, Callable[["Tensor"], "Tensor"]]:
    """mrpro's operators, composed; images are (batch, coil = 1, z = 1, y, x)."""
    from mrpro.operators import CartesianMaskingOp, FastFourierOp, SensitivityOp

    maps = case.maps.reshape(-1, *case.maps.shape[-3:])[:, :, None]
    mask = case.mask.expand(maps.shape[-2:])[None, None, None]
    operator = CartesianMaskingOp(mask) @ FastFourierOp(dim=(-2, -1)) @ SensitivityOp(maps)
    functions = {"forward": operator, "adjoint": operator.H, "normal": operator.gram}

    def apply(name: str, x: "Tensor") -> "Tensor":
        core = x.shape[-3:] if name == "adjoint" else (1, *x.shape[-2:])
        (out,) = functions[name](x.reshape(-1, core[0], 1, *core[1:]))
        return out.reshape(case.maps.shape if name == "forward" else case.image.shape)

    return {name: partial(apply, name) for name in functions}


FORMS = {OURS: package_form, PLAIN: plain_form, "SigPy": sigpy_form, "deepinv": deepinv_form, "mrpro": mrpro_form}


def bare(case: Case, what: str, gradient: bool) -> Callable[[], object]:
    """The transforms of one operator and nothing else."""
    import torch

    stack = (case.maps * case.image.unsqueeze(-3)).contiguous()
    dim = (-1,) if what == "normal" and case.mask.shape[0] == 1 else (-2, -1)
    count = (2 if what == "normal" else 1) * (2 if gradient else 1)

    def run() -> None:
        for number in range(count):
            transform = torch.fft.ifftn if (number % 2 == 1) != (what == "adjoint") else torch.fft.fftn
            transform(stack, dim=dim, norm="ortho")

    return run


def with_gradient(function: Callable[["Tensor"], "Tensor"], x: "Tensor", weight: "Tensor") -> "Tensor":
    """Gradient with respect to `x` of ``Re <weight, function(x)>``."""
    import torch

    x = x.detach().requires_grad_(True)
    return torch.autograd.grad(function(x), x, weight)[0]


def compare(case: Case, what: str, gradient: bool, runs: int) -> str:
    """Table of all programs for one operator, and its gradient."""
    import torch

    x, weight = (case.kspace, case.image_weight) if what == "adjoint" else (case.image, case.kspace)
    if what == "normal":
        weight = case.image_weight
    exact_case = Case(*(v if v.dtype == torch.bool else v.to(torch.complex128) for v in case))
    run: Callable[..., Any] = with_gradient if gradient else lambda function, x, weight: function(x)
    exact = run(plain_form(exact_case)[what], x.to(torch.complex128), weight.to(torch.complex128))
    programs = {BARE: bare(case, what, gradient)}
    for name, form in FORMS.items():
        if gradient and name == "SigPy":
            continue
        try:
            programs[name] = partial(run, form(case)[what], x, weight)
        except ImportError:
            measure.progress(f"  {name} is not installed and is left out")
    measured = measure.in_turns(programs, runs)
    error = {name: measure.relative_error(of.result, exact) for name, of in measured.items() if name != BARE}
    return measure.table(measured, BARE, {"error": error}, milliseconds=True)


def main() -> None:
    options = parse()
    measure.set_threads(options.threads)
    warnings.simplefilter("ignore")
    from mri_ambient.allocator import keep_freed_memory

    keep_freed_memory()
    single, batch = (options.coils, *options.size), tuple(options.batch)
    wanted = [
        (single, "forward", False, False),
        (single, "adjoint", False, False),
        (single, "normal", True, False),
        (single, "normal", False, False),
        (single, "normal", True, True),
        (batch, "normal", True, False),
        (batch, "normal", True, True),
        (batch, "forward", False, True),
    ]
    for shape, what, line_mask, gradient in wanted:
        slices = "one slice" if len(shape) == 3 else f"{shape[0]} slices"
        size = f"{shape[-3]} coils, {shape[-2]} x {shape[-1]}, {slices}"
        mask = "line mask" if line_mask else "2-D mask"
        title = f"{what.capitalize()}{' with gradient' if gradient else ''}, {mask}: {size}"
        measure.progress(title)
        print(f"### {title}\n\n{compare(make_case(shape, line_mask), what, gradient, options.runs)}", flush=True)


if __name__ == "__main__":
    main()
