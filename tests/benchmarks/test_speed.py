"""The comparisons of speed: what they time is right, and their bounds are noticed when broken."""

import importlib.util
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest
import torch

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Loads a script of the folder by name, without running it."""

    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(f"benchmark_{name}", FOLDER / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        return module

    monkeypatch.setitem(sys.modules, "measure", load("measure"))
    return load


def test_programs_take_turns_and_slow_ones_run_once(script, monkeypatch):
    measure, calls, clock = script("measure"), [], [0.0]
    monkeypatch.setattr(measure.time, "perf_counter", lambda: clock[0])

    def program(name, seconds):
        calls.append(name)
        clock[0] += seconds
        return name

    lengths = {"a": 1, "slow": 100, "b": 2}
    found = measure.in_turns({n: partial(program, n, s) for n, s in lengths.items()}, 3, patience=10)
    assert calls == ["a", "slow", "b", *["a", "b"] * 3]
    assert {name: of.seconds for name, of in found.items()} == {"a": [1] * 3, "slow": [100], "b": [2] * 3}
    assert found["b"].result == "b"


def test_ratios_are_formed_within_a_turn(script):
    measure = script("measure")
    assert measure.ratios([2, 30], [1, 10]) == [2, 3]
    assert measure.ratios([60], [1, 10, 2]) == [30]
    a, b = measure.Measured([2.0, 4.0, 30.0], 0, None), measure.Measured([1.0, 1.0, 10.0], 0, None)
    line = measure.table({"a": a, "b": b}, "b", {"note": {"a": "x"}}).splitlines()[2]
    assert line == "| a | 2.00 / 4.00 / 30.0 | 2.00 / 3.00 / 4.00 | x | 3 |"


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is measured on Linux only")
def test_peak_memory_holds_what_is_freed_before_the_return(script):
    measure = script("measure")
    assert measure.warm_up(lambda: torch.ones(64 * 2**18).sum()).memory == pytest.approx(64, rel=0.2)


def test_guard_measures_again_before_it_fails(script, capsys, monkeypatch):
    guard, values = script("guard"), [3.0, 1.0, 3.0, 3.0, 1.0]
    checks = [guard.Check(name, lambda: values.pop(0), 0, 2) for name in ("noisy", "broken", "good")]
    assert [check.holds() for check in checks] == [True, False, True]
    assert [("VIOLATED" in line) for line in capsys.readouterr().out.splitlines()] == [False, True, False]
    monkeypatch.setattr(guard.measure, "set_threads", lambda threads: None)
    for bounds, code in (((0, 2), 0), ((2, 3), 1)):
        monkeypatch.setattr(guard, "CHECKS", [guard.Check("one", lambda: 1.0, *bounds)])
        with pytest.raises(SystemExit) as exit_of:
            guard.main()
        assert exit_of.value.code == code


def test_guard_counts_network_evaluations(script):
    assert script("guard").evaluations_per_sample() == 25


@pytest.mark.parametrize("case", [(4, 40, 36), (6, 33, 40)])
def test_espirit_follows_its_definition_in_double_precision(script, case):
    espirit = script("espirit")
    kspace = espirit.simulate(*case, 0.01)
    pixels, vectors, values = espirit.reference(kspace, 20)
    found = espirit.package_maps(kspace, 20, "torch").flatten(1)[:, pixels]
    inside = values > espirit.CROP
    clear = (values - espirit.CROP).abs() > 1e-4  # elsewhere rounding decides on the support
    assert torch.equal((found.abs().amax(0) > 0)[clear], inside[clear])
    overlap = (vectors.conj() * found).sum(0).abs()[inside & clear]
    torch.testing.assert_close(overlap, torch.ones_like(overlap), atol=1e-5, rtol=0)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("line_mask", [True, False])
@pytest.mark.parametrize("shape", [(3, 10, 32), (2, 3, 9, 32)])
@pytest.mark.parametrize("name", ["mri-ambient", "SigPy", "deepinv", "mrpro"])
def test_all_programs_compute_the_same_operators(script, name, shape, line_mask):
    if name != "mri-ambient":
        pytest.importorskip(name.lower(), reason="a peer that is not installed")
    operators = script("operators")
    case = operators.make_case(shape, line_mask)
    plain, form = operators.plain_form(case), operators.FORMS[name](case)
    for what in ("forward", "adjoint", "normal"):
        x = case.kspace if what == "adjoint" else case.image
        torch.testing.assert_close(form[what](x), plain[what](x), atol=1e-5, rtol=1e-5)
        if name != "SigPy":
            weight = torch.randn_like(plain[what](x))
            found, expected = (operators.with_gradient(f[what], x, weight) for f in (form, plain))
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_all_solvers_find_the_same_images(script):
    solves = script("solves")
    problem = solves.make_problem(4, 10, 32, levels=3, samples=2)
    exact = solves.exactly(problem).to(torch.complex64)
    programs = [solves.by_rows, solves.by_cholesky, partial(solves.by_cg, tolerance=1e-6)]
    programs.append(partial(solves.by_sigpy, tolerance=1e-6))
    for program in programs:
        torch.testing.assert_close(program(problem), exact, atol=2e-3, rtol=0)
    residual = problem.operator.normal(exact) + torch.tensor(problem.ratios)[:, None, None, None] * exact - problem.rhs
    assert residual.norm() < 1e-5 * problem.rhs.norm()
