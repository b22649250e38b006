"""Solving ``(A^H A + lambda) u = b`` for a line mask: the row-wise exact solver against conjugate gradients.

    python benchmarks/solves.py --coils 8 --size 160 160 --runs 5

Three questions:

1. One right-hand side at one noise level in the middle: what setting up an exact solver costs.
2. The data steps of 8 samples at 25 falling noise levels (`--many`), 200 right-hand sides, as posterior sampling needs
   them: ``b = A^H y + lambda v`` with ``v`` an image with noise of that level, where conjugate gradients start.
3. Per image row, by complex products (the solver uses real ones): eigendecomposition (serves every level) or Cholesky
   (serves one), and from how many levels on the first is cheaper.

The tolerance of conjugate gradients is the residual over the norm of b, for all programs. Error: the largest relative
error of a right-hand side, against dense blocks of the operator solved in double precision.
"""

import argparse
import importlib.util
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import measure

if TYPE_CHECKING:
    from torch import Tensor

    from mri_ambient.operators import Sense

NOISE = 0.02
HIGHEST, LOWEST, SINGLE = 1.0, 0.02, 0.1  # standard deviations of the image noise: first and last level, the only one


@dataclass
class Problem:
    """An operator, and right-hand sides (level, sample, y, x) with regularisation and start of each."""

    operator: "Sense"
    ratios: list[float]
    rhs: "Tensor"
    start: "Tensor"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--coils", type=int, default=8)
    parser.add_argument("--size", type=int, nargs=2, default=(160, 160), metavar=("Y", "X"))
    parser.add_argument("--many", type=int, nargs=2, default=(25, 8), metavar=("LEVELS", "SAMPLES"))
    parser.add_argument("--widths", type=int, nargs="*", default=(128, 256, 384), help="of rows, for question 3")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--patience", type=float, default=10, help="seconds beyond which a program runs only once")
    parser.add_argument("--threads", type=int, help="for all programs; by default each decides")
    return parser.parse_args()


def make_problem(coils: int, ny: int, nx: int, levels: int, samples: int) -> Problem:
    """A head phantom in a birdcage coil, R = 4, with noise."""
    import numpy as np
    import sigpy
    import torch
    from sigpy.mri import birdcage_maps

    from mri_ambient.operators import Sense, random_mask

    generator = torch.Generator().manual_seed(0)
    maps = torch.as_tensor(birdcage_maps((coils, ny, nx), r=1.3)).to(torch.complex64)
    maps = maps / torch.linalg.vector_norm(maps, dim=0)
    image = torch.as_tensor(sigpy.shepp_logan((ny, nx), dtype=np.complex64))
    operator = Sense(maps, random_mask(nx, 4, generator=generator))

    def noise(*shape: int) -> "Tensor":
        return torch.view_as_complex(torch.randn(*shape, 2, generator=generator))

    adjoint = operator.adjoint(operator.forward(image) + NOISE * noise(coils, ny, nx))
    spread = np.geomspace(HIGHEST, LOWEST, levels).tolist() if levels > 1 else [SINGLE]
    ratios = [(NOISE / s) ** 2 for s in spread]
    start = torch.stack([image + s * noise(samples, ny, nx) for s in spread])
    rhs = torch.stack([adjoint + ratio * v for ratio, v in zip(ratios, start, strict=True)])
    return Problem(operator, ratios, rhs, start)


def blocks(operator: "Sense") -> "Tensor":
    """``A^H A`` as one matrix (y, x, x) per image row, column by column; in the operator's precision."""
    import torch

    ny, nx = operator.image_shape
    columns = torch.eye(nx, dtype=operator.sensitivity_maps.dtype)[:, None].expand(nx, ny, nx)
    return torch.stack([operator.normal(column) for column in columns], dim=-1)


def exactly(problem: Problem) -> "Tensor":
    """Solutions in double precision, from the dense blocks."""
    import torch

    from mri_ambient.operators import Sense

    double = Sense(problem.operator.sensitivity_maps.to(torch.complex128), problem.operator.mask)
    values, vectors = torch.linalg.eigh(blocks(double))
    columns = problem.rhs.to(torch.complex128).permute(2, 3, 0, 1).flatten(2)  # (y, x, level * sample)
    each = torch.tensor(problem.ratios).repeat_interleave(problem.rhs.shape[1])
    found = vectors @ ((vectors.mH @ columns) / (values[..., None] + each))
    return found.unflatten(2, problem.rhs.shape[:2]).permute(2, 3, 0, 1)


def by_rows(problem: Problem) -> "Tensor":
    """The package's solver, its decomposition included."""
    import torch

    from mri_ambient.operators import RowSolver

    solver = RowSolver(problem.operator)
    return torch.stack([solver.solve(b, ratio) for b, ratio in zip(problem.rhs, problem.ratios, strict=True)])


def by_cholesky(problem: Problem) -> "Tensor":
    """One factorisation of all rows a level."""
    import torch

    rows, found = row_blocks(problem.operator), []
    identity = torch.eye(rows.shape[-1])
    for b, ratio in zip(problem.rhs, problem.ratios, strict=True):
        factor = torch.linalg.cholesky(rows + ratio * identity)
        found.append(torch.cholesky_solve(b.permute(1, 2, 0), factor).permute(2, 0, 1))
    return torch.stack(found)


def row_blocks(operator: "Sense") -> "Tensor":
    """The same matrices as `blocks`, fast: products of the maps times the circulant matrix of the mask."""
    import torch

    from mri_ambient.operators import fft1c, ifft1c

    rows = operator.sensitivity_maps.transpose(0, 1)
    identity = torch.eye(operator.image_shape[-1], dtype=rows.dtype)
    circulant = ifft1c(operator.mask * fft1c(identity)).T
    return (rows.conj().mT @ rows) * circulant


def by_cg(problem: Problem, tolerance: float) -> "Tensor":
    """The package's conjugate gradients, the samples of a level together."""
    import torch

    from mri_ambient.operators import conjugate_gradient

    return torch.stack(
        [
            conjugate_gradient(
                problem.operator.normal, b, regularisation=ratio, initial=v, iterations=1000, tolerance=tolerance
            ).solution
            for b, ratio, v in zip(problem.rhs, problem.ratios, problem.start, strict=True)
        ]
    )


def by_sigpy(problem: Problem, tolerance: float) -> "Tensor":
    """SigPy's operator and solver, one right-hand side at a time."""
    import numpy as np
    import torch
    from sigpy.alg import ConjugateGradient
    from sigpy.mri.linop import Sense

    operator = problem.operator
    weights = operator.mask.expand(operator.image_shape).numpy().astype("float32")
    normal = Sense(operator.sensitivity_maps.numpy(), weights=weights).N
    found = np.array(problem.start.numpy())
    for level, ratio in enumerate(problem.ratios):
        for sample, b in enumerate(problem.rhs[level].numpy()):
            limit = tolerance * float(np.linalg.norm(b))
            u = found[level, sample]
            solver = ConjugateGradient(lambda x, r=ratio: normal(x) + r * x, b, u, max_iter=1000, tol=limit)
            while not solver.done():
                solver.update()
    return torch.from_numpy(found)


def by_mrpro(problem: Problem, tolerance: float) -> "Tensor":
    """mrpro's operators and solver, one right-hand side at a time: it has one step size for all that it is given."""
    import torch
    from mrpro.algorithms.optimizers import cg
    from mrpro.operators import CartesianMaskingOp, FastFourierOp, IdentityOp, SensitivityOp

    operator = problem.operator
    maps = operator.sensitivity_maps[None, :, None]
    mask = operator.mask.expand(operator.image_shape)[None, None, None]
    gram = (CartesianMaskingOp(mask) @ FastFourierOp(dim=(-2, -1)) @ SensitivityOp(maps)).gram
    found = torch.empty_like(problem.rhs)
    for level, ratio in enumerate(problem.ratios):
        regularised = gram + ratio * IdentityOp()
        for sample, b in enumerate(problem.rhs[level]):
            limit = tolerance * float(b.norm())
            start = problem.start[level, sample][None, None, None]
            (u,) = cg(regularised, b[None, None, None], initial_value=start, max_iterations=1000, tolerance=limit)
            found[level, sample] = u[0, 0, 0]
    return found


def compare(problem: Problem, options: argparse.Namespace) -> str:
    """Table of all solvers."""
    exact = exactly(problem)
    programs: dict[str, Callable[[], Tensor]] = {
        "row-wise, decomposition included": partial(by_rows, problem),
        "Cholesky, each level anew": partial(by_cholesky, problem),
    }
    one = len(problem.ratios) == 1
    solvers = {"CG": by_cg, "SigPy CG": by_sigpy}
    if one and importlib.util.find_spec("mrpro"):
        solvers["mrpro CG"] = by_mrpro
    for name, solve in solvers.items():
        for tolerance in (1e-3, 1e-6) if one or solve is by_cg else (1e-3,):  # the rest would take minutes
            programs[f"{name} to {tolerance:g}"] = partial(solve, problem, tolerance)
    measured = measure.in_turns(programs, options.runs, options.patience)
    error = {}
    for name, of in measured.items():
        difference = (of.result.to(exact.dtype) - exact).flatten(2).norm(dim=2)
        error[name] = f"{float((difference / exact.flatten(2).norm(dim=2)).max()):.1e}"
    return measure.table(measured, next(iter(programs)), {"largest error": error}, milliseconds=True)


def use_eigh(values: "Tensor", vectors: "Tensor", rhs: "Tensor") -> "Tensor":
    """Solutions (row, x, item) from a decomposition of the rows."""
    return vectors @ ((vectors.mH @ rhs) / values[..., None])


def crossover(widths: list[int], coils: int, samples: int, runs: int) -> str:
    """Milliseconds a row of what the exact solvers do, and the number of levels at which they cost the same."""
    import torch

    from mri_ambient.operators.arrays import eigh

    names = ("product of maps", "eigh", "use of eigh", "Cholesky", "use of Cholesky", "LU and its use")
    lines = [["pixels a row", *names, "levels from which eigh is cheaper"], ["---"] * (len(names) + 2)]
    for width in widths:
        count = max(4, 2**21 // width**2)  # rows: a batch that does not fit the cache, as in a slice
        generator = torch.Generator().manual_seed(0)
        maps = torch.randn(count, coils, width, dtype=torch.complex64, generator=generator)
        b = torch.randn(count, width, samples, dtype=torch.complex64, generator=generator)
        matrices = maps.mH @ maps / coils + 0.1 * torch.eye(width)
        values, vectors = torch.linalg.eigh(matrices)
        factor = torch.linalg.cholesky(matrices)
        functions: tuple[Callable[[], object], ...] = (
            partial(torch.matmul, maps.mH, maps),
            partial(eigh, matrices),
            partial(use_eigh, values, vectors, b),
            partial(torch.linalg.cholesky, matrices),
            partial(torch.cholesky_solve, b, factor),
            partial(torch.linalg.solve, matrices, b),
        )
        measured = measure.in_turns(dict(zip(names, functions, strict=True)), runs)
        cost = {name: 1e3 * min(of.seconds) / count for name, of in measured.items()}
        gain = cost["Cholesky"] + cost["use of Cholesky"] - cost["use of eigh"]
        levels = f"{cost['eigh'] / gain:.1f}" if gain > 0 else "never"
        lines.append([str(width), *(f"{cost[name]:#.3g}" for name in names), levels])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def main() -> None:
    options = parse()
    measure.set_threads(options.threads)
    warnings.simplefilter("ignore")
    from mri_ambient.allocator import keep_freed_memory

    keep_freed_memory()
    (ny, nx), (levels, samples) = options.size, options.many
    size = f"{options.coils} coils, {ny} x {nx}"
    for count, each, what in ((1, 1, "one right-hand side"), (levels, samples, f"{levels} levels x {samples} samples")):
        measure.progress(f"Solves: {size}, {what}")
        print(f"### {size}, {what}\n\n{compare(make_problem(options.coils, ny, nx, count, each), options)}", flush=True)
    if options.widths:
        measure.progress("Solves: crossover")
        print(f"### Milliseconds a row, {samples} right-hand sides, minimum of {options.runs}\n")
        print(crossover(options.widths, options.coils, samples, options.runs))


if __name__ == "__main__":
    main()
