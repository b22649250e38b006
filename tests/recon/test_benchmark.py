"""Benchmarks on tiny scans: what is measured, what is left behind, restarts, processes, refusals."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from mri_ambient.baselines import VarNet, VarNetConfig
from mri_ambient.calibration import calibrate, prepare_slice
from mri_ambient.denoiser import Denoiser, DenoiserConfig
from mri_ambient.errors import InputError
from mri_ambient.metrics import psnr
from mri_ambient.operators import center_crop, ifft2c, rss
from mri_ambient.operators.classical import l1_wavelet
from mri_ambient.phantoms import phantom_volume
from mri_ambient.prior import save_prior
from mri_ambient.recon import benchmark as module
from mri_ambient.recon import comparison, reconstruct
from mri_ambient.recon.benchmark import Benchmark, Conditions, benchmark, summarise
from mri_ambient.recon.comparison import Source, opened, reference, spread
from mri_ambient.recon.figures import Curve, curves
from mri_ambient.recon.grappa import grappa
from mri_ambient.recon.ledger import Ledger
from mri_ambient.recon.pipeline import undersample
from mri_ambient.reporter import Silent
from mri_ambient.scan import Scan, load_scan, write_scan
from mri_ambient.simulate import simulate_scan

CHEAP = {"methods": ("zero-filled", "sense"), "accels": (1, 2), "masks": ("random", "gaussian")}
ONE = Conditions(slices=1, samples=2, steps=2, device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """Fully sampled scans of two patients, with the truth."""
    folder = tmp_path_factory.mktemp("scans")
    for i in range(2):
        scan = simulate_scan(phantom_volume(2, (48, 48), seed=i), coils=3, noise_std=0.02, name=f"scan{i}")
        write_scan(replace(scan, patient=f"patient{i}"), folder / f"scan{i}.h5")
    return folder


@pytest.fixture(scope="module")
def priors(tmp_path_factory):
    """An untrained prior and an untrained reconstruction network, in run folders."""
    folder = tmp_path_factory.mktemp("priors")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        networks = {
            "ambient": Denoiser(DenoiserConfig(channels=(4, 8), embedding=8)),
            "varnet": VarNet(VarNetConfig(2, 1, cascades=1)),
        }
    for name, network in networks.items():
        (folder / name).mkdir()
        save_prior(folder / name / "prior.safetensors", network, {"method": name})
    return folder


class Killer(Silent):
    """Stops a benchmark when so many pieces are done."""

    def __init__(self, at):
        self.at, self.seen = at, []

    def stage(self, text, done, total):
        self.seen.append((text, done, total))
        if done == self.at:
            raise KeyboardInterrupt


def untimed(result):
    return [{key: value for key, value in row.items() if key != "seconds"} for row in result.rows]


def test_every_scan_acceleration_mask_and_method_has_a_row(scans, priors, tmp_path):
    methods = ("sense", "mmse", "posterior")
    names = [str(priors / "ambient"), str(priors / "varnet")]
    conditions = replace(ONE, coverage=True)
    result = benchmark([scans], tmp_path, methods=methods, priors=names, accels=(2, 1), masks=CHEAP["masks"],
                       conditions=conditions)  # fmt: skip
    labels = ["sense", "mmse ambient", "posterior ambient", "varnet"]
    found = {(row["volume"], row["accel"], row["mask"], row["method"]) for row in result.rows}
    patterns = [(1.0, "full"), (2.0, "random"), (2.0, "gaussian")]
    assert found == {(f"scan{i}", *p, label) for i in range(2) for p in patterns for label in labels}
    assert len(result.rows) == len(found)
    evaluations = {row["method"]: row["evaluations"] for row in result.rows}
    assert (evaluations["sense"], evaluations["mmse ambient"], evaluations["varnet"]) == (0, 1, 1)
    assert evaluations["posterior ambient"] >= 5
    assert [("coverage" in row) == (row["method"] == "posterior ambient") for row in result.rows] == [True] * 24
    covered = [row["coverage"] for row in result.rows if "coverage" in row]
    for found in covered:  # shorter error bars hold the truth less often
        assert (found["uncalibrated"] <= found["normal"]) or found["std_factor"] < 1
    files = {"benchmark.json", "quality.png", "panel.png", "coverage.png"}
    assert {path.name for path in tmp_path.iterdir()} == files
    assert Benchmark(**json.loads((tmp_path / "benchmark.json").read_text())) == result
    assert set(result.settings["priors"]) == set(names)
    assert {"mri-ambient", "torch"} <= set(result.settings["versions"])
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in files if name.endswith("png"))


def test_rows_hold_what_reconstruct_gives(scans, tmp_path):
    result = benchmark([scans], tmp_path, **CHEAP, conditions=ONE)
    (row,) = [r for r in result.rows if (r["volume"], r["mask"], r["method"]) == ("scan1", "random", "sense")]
    scan = load_scan(scans / "scan1.h5")
    expected = reconstruct(undersample(scan, 2, "random", 0), method="sense", slices=[1], device="cpu")
    assert row["psnr"] == pytest.approx(psnr(scan.target[1:].numpy(), expected.magnitude.numpy()), rel=1e-6)
    assert row["patient"] == "patient1"
    assert row["acceleration"] == pytest.approx(2)


def test_a_stopped_benchmark_continues(scans, tmp_path):
    whole = benchmark([scans], tmp_path / "whole", **CHEAP, conditions=ONE)
    with pytest.raises(KeyboardInterrupt):
        benchmark([scans], tmp_path / "part", **CHEAP, conditions=ONE, reporter=Killer(5))
    assert [path.name for path in (tmp_path / "part").iterdir()] == ["benchmark.partial"]
    partial = tmp_path / "part" / "benchmark.partial"
    kept = partial.read_text()
    assert len(kept.splitlines()) == 1 + 5
    partial.write_text(kept[:-20])  # killed while it wrote the fifth
    watcher = Killer(-1)
    resumed = benchmark([scans], tmp_path / "part", **CHEAP, conditions=ONE, reporter=watcher)
    assert watcher.seen[0] == ("benchmark", 4, 12)
    assert untimed(resumed) == untimed(whole)
    assert not partial.exists()


def test_a_finished_benchmark_is_not_repeated(scans, tmp_path, monkeypatch):
    first = benchmark([scans], tmp_path, **CHEAP, conditions=ONE)
    monkeypatch.setattr(module, "do", None)
    assert benchmark([scans], tmp_path, **CHEAP, conditions=ONE) == first


@pytest.mark.parametrize("stop", [True, False], ids=["stopped", "finished"])
def test_other_settings_in_the_same_folder_are_refused(scans, tmp_path, stop):
    if stop:
        with pytest.raises(KeyboardInterrupt):
            benchmark([scans], tmp_path, **CHEAP, conditions=ONE, reporter=Killer(1))
    else:
        benchmark([scans], tmp_path, **CHEAP, conditions=ONE)
    with pytest.raises(InputError, match=r"other settings: accels 1, 2 \(now 1, 3\)\. Choose another --out"):
        benchmark([scans], tmp_path, **{**CHEAP, "accels": (1, 3)}, conditions=ONE)
    with pytest.raises(InputError, match=r"seed 0 \(now 1\)"):
        benchmark([scans], tmp_path, **CHEAP, conditions=replace(ONE, seed=1))
    with pytest.raises(InputError, match=r"scans \(different\)"):
        benchmark([scans / "scan0.h5"], tmp_path, **CHEAP, conditions=ONE)


def test_two_processes_do_the_same(scans, tmp_path):
    alone = untimed(benchmark([scans], tmp_path / "1", **CHEAP, conditions=ONE))
    shared = untimed(benchmark([scans], tmp_path / "2", **CHEAP, conditions=ONE, jobs=2))
    names = ("volume", "accel", "mask", "method")
    assert [[row[name] for name in names] for row in shared] == [[row[name] for name in names] for row in alone]
    for metric in ("psnr", "ssim", "nmse"):
        assert [row[metric] for row in shared] == pytest.approx([row[metric] for row in alone], rel=1e-5)


def test_weights_are_tuned_on_other_patients_and_used(scans, tmp_path):
    methods = ("zero-filled", "l1-wavelet")
    given = {"methods": methods, "accels": (2,), "masks": ("random",), "conditions": ONE}
    result = benchmark([scans / "scan0.h5"], tmp_path / "tuned", tune=[scans / "scan1.h5"], **given)
    other = undersample(load_scan(scans / "scan1.h5"), 2, "random", 0)
    item, scale = prepare_slice(other, 1, calibrate(other)), calibrate(other).scale
    quality = {}
    for weight in comparison.WEIGHTS["l1-wavelet"]:
        image = l1_wavelet(item.kspace, item.operator, regularisation=weight * item.noise_std).abs() * scale
        quality[weight] = psnr(other.target[1:].numpy(), image[None].numpy())
    best = max(quality, key=quality.get)
    assert result.weights == {"2 random": {"l1-wavelet": best}}
    rows = {row["method"]: row for row in result.rows}
    assert rows["l1-wavelet"]["weight"] == best
    assert "weight" not in rows["zero-filled"]
    default = benchmark([scans / "scan0.h5"], tmp_path / "default", **given)
    assert {row["method"]: row["psnr"] for row in default.rows}["zero-filled"] == rows["zero-filled"]["psnr"]
    with pytest.raises(InputError, match="same patient"):
        benchmark([scans], tmp_path / "same", tune=[scans / "scan1.h5"], **given)
    another = simulate_scan(phantom_volume(2, (48, 48), seed=9), coils=3, name="another")
    write_scan(replace(another, patient="patient0"), tmp_path / "another.h5")
    with pytest.raises(InputError, match="same patient"):
        benchmark([scans], tmp_path / "same", tune=[tmp_path / "another.h5"], **given)


def test_what_a_mask_cannot_do_is_listed_and_the_rest_is_done(scans, tmp_path):
    given = {"methods": ("zero-filled",), "masks": ("random",), "conditions": ONE}
    result = benchmark([scans], tmp_path / "some", accels=(2, 16), **given)
    assert {row["accel"] for row in result.rows} == {2.0}
    assert {row["accel"] for row in result.skipped} == {16.0}
    assert "the ACS alone has 8" in result.skipped[0]["skipped"]
    with pytest.raises(InputError, match="No mask is possible"):
        benchmark([scans], tmp_path / "none", accels=(16,), **given)
    assert not (tmp_path / "none" / "benchmark.json").exists()


class TestGrappa:
    def test_fills_lines_and_is_combined_with_the_maps(self):
        pytest.importorskip("pygrappa", reason="the optional package pygrappa is not installed")
        scan = simulate_scan(phantom_volume(1, (64, 64), seed=0), coils=4, noise_std=0.0)
        every_second = torch.arange(64) % 2 == 0
        every_second[24:40] = True
        scan = scan.undersample(every_second)
        calibration = calibrate(scan)
        item = prepare_slice(scan, 0, calibration)
        image, aliased = (
            x.abs() * calibration.scale for x in (grappa(item, 0.001), item.operator.adjoint(item.kspace))
        )
        assert psnr(scan.target.numpy(), image[None].numpy()) > psnr(scan.target.numpy(), aliased[None].numpy()) + 8

    def test_rows_where_masks_are_lines(self, scans, tmp_path):
        pytest.importorskip("pygrappa", reason="the optional package pygrappa is not installed")
        given = {"methods": ("grappa",), "accels": (2,), "masks": ("equispaced", "poisson"), "conditions": ONE}
        result = benchmark([scans / "scan0.h5"], tmp_path, **given)
        assert [(row["mask"], row["method"]) for row in result.rows] == [("equispaced", "grappa")]
        assert result.rows[0]["psnr"] > 15
        assert [row["skipped"] for row in result.skipped] == [
            "grappa with poisson masks: it fills missing lines, not single samples."
        ]

    def test_without_the_package_the_extra_is_named(self, scans, tmp_path, monkeypatch):
        monkeypatch.setattr("mri_ambient.recon.grappa.find_spec", lambda name: None)
        with pytest.raises(InputError, match=r"pip install mri-ambient\[grappa\]"):
            benchmark([scans], tmp_path / "out", methods=("grappa",))


class TestTruth:
    def source(self, path):
        return Source(path, "label", "patient", "0")

    def test_of_a_simulated_scan_is_its_target(self, scans):
        scan, chosen, truth = opened(self.source(scans / "scan0.h5"), ONE)
        assert (scan.name, chosen) == ("label", [1])
        np.testing.assert_array_equal(truth, load_scan(scans / "scan0.h5").target[1:].numpy())

    def test_without_one_is_the_root_sum_of_squares_in_the_image_size(self):
        full = simulate_scan(phantom_volume(1, (48, 48), seed=0), coils=3, noise_std=0.01)
        scan = Scan.from_arrays(full.kspace, noise_std=0.01, recon_size=(40, 36))
        expected = center_crop(rss(ifft2c(scan.read(0)), dim=-3), (40, 36))
        np.testing.assert_allclose(reference(scan, [0], None), expected[None].numpy(), rtol=1e-5)

    def test_a_target_larger_than_k_space_is_cropped(self):
        full = simulate_scan(phantom_volume(1, (48, 40), seed=0), coils=3, noise_std=0.01)
        target = torch.nn.functional.pad(full.target, (4, 4, 2, 2))
        scan = Scan.from_arrays(full.kspace, noise_std=0.01, target=target)
        np.testing.assert_array_equal(reference(scan, [0], None), full.target.numpy())

    def test_is_whitened_where_the_scan_is(self):
        """Coil 0 amplified tenfold, noise and all, and the level not stated: the images must be on one scale."""
        full = simulate_scan(phantom_volume(2, (64, 64), seed=0), coils=3, noise_std=0.05)
        kspace = full.kspace * torch.tensor([10.0, 1, 1])[:, None, None]
        scan = Scan.from_arrays(kspace, target=10 * full.target, name="unequal")
        truth = reference(scan, [0, 1], None)
        image = reconstruct(scan, method="sense", device="cpu").magnitude.numpy()
        assert psnr(truth, image) > 25
        assert psnr(scan.target.numpy(), image) < 20


def test_volumes_are_simulated_as_simulate_does(tmp_path):
    nibabel = pytest.importorskip("nibabel")
    volume = phantom_volume(5, (48, 48), seed=3)
    path = tmp_path / "head.nii.gz"
    nibabel.save(nibabel.Nifti1Image(volume.magnitude.transpose(2, 1, 0), volume.affine[:, [2, 1, 0, 3]]), path)
    conditions = replace(ONE, slices=2, coils=4, noise=0.05)
    scan, chosen, truth = opened(Source(path, "name", "p", "0"), conditions)
    assert chosen == [0, 1]
    assert scan.shape == (2, 4, 48, 48)
    loaded = module.load_volume(path)
    expected = simulate_scan(loaded, coils=4, noise_std=0.05, slices=[1, 3], name="name")
    torch.testing.assert_close(scan.kspace, expected.kspace)
    np.testing.assert_array_equal(truth, expected.target.numpy())
    result = benchmark([path], tmp_path / "out", methods=("zero-filled",), accels=(2,), masks=("random",),
                       conditions=conditions)  # fmt: skip
    assert [row["volume"] for row in result.rows] == ["head"]


@pytest.mark.parametrize(
    ("count", "wanted", "expected"), [(100, 3, [25, 50, 75]), (4, 3, [1, 2, 3]), (3, 3, [0, 1, 2]), (1, 5, [0])]
)
def test_slices_are_spread_and_never_taken_twice(count, wanted, expected):
    assert spread(count, wanted) == expected


def test_summary_resamples_patients_and_knows_when_there_is_one():
    def row(patient, value):
        common = {"mask": "random", "accel": 2, "method": "tv", "patient": patient, "seconds": value, "evaluations": 0}
        return {**common, "psnr": value, "ssim": value / 100, "nmse": 0.0}

    (entry,) = summarise([row("a", 20.0), row("a", 22.0), row("b", 30.0)])
    assert (entry["volumes"], entry["patients"]) == (3, 2)
    assert entry["psnr"] == {"mean": pytest.approx(24), "low": 21, "high": 30}  # either patient alone, at the ends
    (alone,) = summarise([row("a", 20.0)])
    assert np.isnan(alone["psnr"]["low"])
    (exact,) = summarise([{**row("a", 20.0), "psnr": None}])  # JSON has no infinity
    assert exact["psnr"]["mean"] == float("inf")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"methods": ("magic",)}, "'magic' is not one of"),
        ({"methods": ()}, "at least one method"),
        ({"masks": ("spiral",)}, "spiral"),
        ({"masks": ()}, "at least one acceleration and one mask"),
        ({"accels": (0.5,)}, "at least 1"),
        ({"jobs": 0}, "jobs must be at least 1"),
        ({"conditions": Conditions(slices=0)}, "slices must be at least 1"),
        ({"conditions": Conditions(noise=-1.0)}, "must not be negative"),
        ({"conditions": Conditions(samples=1, coverage=True)}, "at least 2 samples"),
        ({"methods": ("mmse",), "priors": ("nothing",)}, "no prior 'nothing'"),
        ({"methods": ("mmse",), "priors": ()}, "needs a prior"),
    ],
)
def test_unusable_settings(scans, tmp_path, change, expected):
    with pytest.raises(InputError, match=expected):
        benchmark([scans], tmp_path / "out", **{**CHEAP, **change})
    assert not (tmp_path / "out").exists()


def test_unusable_scans_and_priors(scans, priors, tmp_path):
    with pytest.raises(InputError, match="Nothing found"):
        benchmark([tmp_path / "absent.h5"], tmp_path / "out", **CHEAP)
    with pytest.raises(InputError, match="no scan to benchmark on"):
        benchmark([], tmp_path / "out", **CHEAP)
    write_scan(undersample(load_scan(scans / "scan0.h5"), 2), tmp_path / "sparse.h5")
    with pytest.raises(InputError, match=r"sparse is undersampled \(R = 2\.00\): a benchmark needs fully sampled"):
        benchmark([tmp_path / "sparse.h5"], tmp_path / "out", **CHEAP)
    (tmp_path / "broken.h5").write_text("no HDF5")
    with pytest.raises(InputError, match=r"broken\.h5"):
        benchmark([tmp_path / "broken.h5"], tmp_path / "out", **CHEAP)
    with pytest.raises(InputError, match=r"not a prior: use --method mmse"):
        benchmark([scans], tmp_path / "out", methods=("posterior",), priors=(str(priors / "varnet"),))
    twin = tmp_path / "varnet"
    twin.mkdir()
    (twin / "prior.safetensors").write_bytes((priors / "varnet" / "prior.safetensors").read_bytes())
    with pytest.raises(InputError, match="Two priors would both be called 'varnet'"):
        benchmark([scans], tmp_path / "out", methods=("mmse",), priors=(str(priors / "varnet"), str(twin)))
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "benchmark.json").write_text("{}")
    with pytest.raises(InputError, match="is not the result of a benchmark"):
        benchmark([scans], tmp_path / "taken", **CHEAP, conditions=ONE)


def test_scans_of_one_name_take_that_of_their_folder(scans, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "t1.h5").write_bytes((scans / f"scan{'ab'.index(name)}.h5").read_bytes())
    result = benchmark([tmp_path / "a", tmp_path / "b"], tmp_path / "out", methods=("zero-filled",), accels=(2,),
                       masks=("random",), conditions=ONE)  # fmt: skip
    assert [row["volume"] for row in result.rows] == ["a_t1", "b_t1"]


def test_a_ledger_keeps_results_at_once(tmp_path):
    ledger = Ledger(tmp_path / "new" / "x.partial", {"seed": 0, "sizes": (1, 2)})
    assert not (tmp_path / "new").exists()
    ledger.add("first", {"value": float("inf")})
    ledger.add("second", {"value": 2.0})
    again = Ledger(tmp_path / "new" / "x.partial", {"seed": 0, "sizes": (1, 2)})
    assert again.results == {"first": {"value": None}, "second": {"value": 2.0}}
    again.path.write_text(again.path.read_text()[:-5])  # killed while it wrote the second
    continued = Ledger(again.path, {"seed": 0, "sizes": (1, 2)})
    continued.add("third", 3)
    assert Ledger(again.path, {"seed": 0, "sizes": (1, 2)}).results == {"first": {"value": None}, "third": 3}


def test_curves_may_lack_points_and_bands(tmp_path):
    grid = {("a", "x"): [Curve("one", [1, 2], [3, 4], ([2, 3], [4, 5])), Curve("two", [], [])], ("a", "y"): []}
    for name, diagonal in (("log.png", False), ("equal.png", True)):
        path = curves(grid, tmp_path / name, x_label="R", ticks=[1, 2], diagonal=diagonal)
        assert path.read_bytes().startswith(b"\x89PNG")
