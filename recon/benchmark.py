"""Methods compared on scans with known truth: every acceleration, every mask, in one run that can be stopped.

Every scan is undersampled retrospectively, once for each acceleration and mask, the same way for all methods, and
reconstructed slice by slice from what is left, coil maps included. Quality is volume-wise, by fastMRI's definitions;
intervals are bootstrapped over patients (`mri_ambient.metrics`). Weights of classical methods are the defaults of
`recon`, or tuned on other scans for every acceleration and mask.

At R = 1 all masks are the same: it is done once, as the mask "full". An acceleration that a mask cannot have on a
matrix (not enough lines for the centre; Poisson discs that do not pack) is left out and listed.

The folder ends up with ``benchmark.json`` (settings, hashes, versions, a row for every scan, acceleration, mask and
method, and their summary), ``quality.png``, ``panel.png`` and with coverage ``coverage.png``. Until then finished rows
are in ``benchmark.partial``, from which the same call continues.
"""

import hashlib
import json
import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mri_ambient.allocator import keep_freed_memory
from mri_ambient.config import RECONSTRUCTIONS
from mri_ambient.dataset import write_atomically
from mri_ambient.errors import InputError
from mri_ambient.metrics import bootstrap_interval
from mri_ambient.operators import MaskPattern
from mri_ambient.preparation import find_sources, is_volume
from mri_ambient.prior import DEFAULT_PRIOR, load_prior
from mri_ambient.readers import is_result
from mri_ambient.recon.benchmark_figures import FULL, draw, draw_panel
from mri_ambient.recon.comparison import (
    METRICS,
    WEIGHTS,
    Cell,
    Conditions,
    Method,
    Source,
    Tuning,
    do,
    require_full,
)
from mri_ambient.recon.grappa import require_pygrappa
from mri_ambient.recon.ledger import Ledger, plain, require_same, run
from mri_ambient.recon.places import check_folder
from mri_ambient.recon.settings import LEARNED, Settings, check_use
from mri_ambient.recon.settings import METHODS as KNOWN
from mri_ambient.reporter import Reporter, Silent
from mri_ambient.run_state import choose_device
from mri_ambient.scan import load_scan
from mri_ambient.volumes import load_volume

ACCELERATIONS = (1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0)
MASKS = ("random", "equispaced", "poisson", "gaussian")
METHODS = ("zero-filled", "sense", "l1-wavelet", "tv", "mmse", "posterior")
RESULT, PARTIAL = "benchmark.json", "benchmark.partial"


@dataclass(frozen=True)
class Benchmark:
    """A finished benchmark; all values are JSON values.

    Attributes
    ----------
    settings : dict
        All that decides the results: conditions, methods, accelerations, masks, hashes of scans and priors, versions.
    weights : dict
        Tuned weights of classical methods, by acceleration and mask.
    rows : list of dict
        One a scan, acceleration, mask and method.
    skipped : list of dict
        Like rows, with the reason.
    summary : list of dict
        One an acceleration, mask and method: means with the ends of their intervals over patients (None where there is
        one patient), seconds and network evaluations a slice, shares of covered pixels.
    """

    settings: dict[str, Any]
    weights: dict[str, Any]
    rows: list[dict[str, Any]]
    skipped: list[dict[str, Any]]
    summary: list[dict[str, Any]]

    def as_dict(self) -> dict[str, Any]:
        """Plain dictionaries and lists, for JSON."""
        return asdict(self)


def benchmark(
    scans: Sequence[str | Path],
    out: str | Path,
    *,
    methods: Sequence[str] = METHODS,
    priors: Sequence[str] = (DEFAULT_PRIOR,),
    accels: Sequence[float] = ACCELERATIONS,
    masks: Sequence[str] = MASKS,
    tune: Sequence[str | Path] = (),
    conditions: Conditions | None = None,
    jobs: int = 1,
    reporter: Reporter | None = None,
) -> Benchmark:
    """Compare methods; the same call continues one that was stopped.

    Parameters
    ----------
    scans : sequence of paths
        Fully sampled k-space files or magnitude volumes, folders of these, or glob patterns.
    out : path
        Folder of the results.
    methods : sequence of str
        Of `mri_ambient.recon.METHODS`, or "grappa" (needs pygrappa); those that are learned are done once a prior.
    priors : sequence of str
        What `load_prior` takes. Reconstruction networks (SSDU, U-Net, VarNet) are used for "mmse" alone.
    accels, masks
        Accelerations and kinds of `MaskPattern`.
    tune : sequence of paths
        Scans of other patients, to choose the weights of classical methods. Default: those of `reconstruct`.
    conditions : Conditions, optional
    jobs : int
        Processes that share the work. The results do not depend on it, up to rounding.
    reporter : Reporter, optional

    Returns
    -------
    Benchmark

    Raises
    ------
    InputError
        If something cannot be used, or the folder holds a benchmark with other settings.
    """
    reporter, out = reporter or Silent(), Path(out)
    check_folder(out)
    keep_freed_memory()
    given = conditions or Conditions()
    Settings("posterior", given.samples, given.steps, given.seed)  # refuses numbers out of range
    given = _resolved(given)
    accels, masks = _checked(accels, masks, given, jobs)
    chosen = _methods(list(dict.fromkeys(methods)), list(dict.fromkeys(priors)))
    sources, tuning = _sources(scans), _sources(tune) if tune else []
    _require_other_patients(sources, tuning)
    settings = plain(_settings(given, chosen, accels, masks, sources, tuning))
    before = _finished(out / RESULT)
    if before is not None:
        require_same(before.settings, settings, out)
        return before
    ledger = Ledger(out / PARTIAL, settings)
    patterns = list(dict.fromkeys((a, FULL if a == 1 else m) for m in masks for a in accels))
    weights = _tune(given, tuning, patterns, chosen, jobs, ledger, reporter)
    cells = [
        Cell(given, source, accel, mask, method, weights.get(f"{accel:g} {mask}", {}).get(method.label))
        for source in sources
        for accel, mask in patterns
        for method in chosen
    ]
    results = run(do, cells, jobs, ledger, "benchmark", reporter)
    rows = [row for row in results if "skipped" not in row]
    if not rows:
        raise InputError(f"No mask is possible on these scans: {results[0]['skipped']}")
    skipped = [row for row in results if "skipped" in row]
    result = Benchmark(settings, weights, rows, skipped, plain(summarise(rows)))
    draw(settings, result.summary, out)
    draw_panel([cell for cell, row in zip(cells, results, strict=True) if "skipped" not in row], out)
    write_atomically(out / RESULT, json.dumps(result.as_dict(), indent=1).encode())
    (out / PARTIAL).unlink(missing_ok=True)
    return result


def _resolved(given: Conditions) -> Conditions:
    """With the device and precision that "auto" stands for."""
    place, number_type = choose_device(given.device, given.precision)
    return replace(given, device=str(place), precision="bf16" if number_type == torch.bfloat16 else "fp32")


def _checked(
    accels: Sequence[float], masks: Sequence[str], given: Conditions, jobs: int
) -> tuple[list[float], list[str]]:
    """Accelerations and masks, each once; refuses what cannot be used."""
    if not accels or not masks:
        raise InputError("A benchmark needs at least one acceleration and one mask.")
    for name, value in (("jobs", jobs), ("slices", given.slices)):
        if value < 1:
            raise InputError(f"The number of {name} must be at least 1, not {value}.")
    if given.noise is not None and not given.noise >= 0:
        raise InputError(f"The noise must not be negative, but is {given.noise:g}.")
    if given.coverage and given.samples < 2:
        raise InputError("Coverage needs at least 2 samples: error bars come from their spread.")
    for mask in masks:
        for accel in accels:
            try:
                MaskPattern(mask, accel)
            except ValueError as error:
                raise InputError(str(error)) from error
    return sorted({float(a) for a in accels}), list(dict.fromkeys(masks))


def _methods(names: list[str], priors: list[str]) -> list[Method]:
    """Every method with every prior it needs, under the names they have in tables."""
    for name in names:
        if name == "grappa":
            require_pygrappa()
        elif name not in KNOWN:
            raise InputError(f"The method {name!r} is not one of {', '.join((*KNOWN, 'grappa'))}.")
    if not names:
        raise InputError("A benchmark needs at least one method.")
    found = [Method(name, name) for name in names if name not in LEARNED]
    learned = [name for name in names if name in LEARNED]
    if learned and not priors:
        raise InputError(f"The method {learned[0]!r} needs a prior.")
    for given in priors if learned else ():
        prior = load_prior(given)
        label = prior.name
        network = prior.card.get("method") in RECONSTRUCTIONS
        for name in learned:
            if network and name != "mmse" and "mmse" in learned:
                continue
            check_use(prior, name)
            found.append(Method(label if network else f"{name} {label}", name, given, prior.hash))
    labels = [method.label for method in found]
    double = [label for label in labels if labels.count(label) > 1]
    if double:
        raise InputError(f"Two priors would both be called {double[0]!r} in the table: rename one.")
    return found


def _sources(paths: Sequence[str | Path]) -> list[Source]:
    """Scans and volumes, opened once to see whether they can be used."""
    files = [path for path in find_sources(paths) if not is_result(path)] if paths else []
    if not files:
        raise InputError("There is no scan to benchmark on: name fully sampled k-space files or magnitude volumes.")
    stems = [path.name if path.is_dir() else path.name.removesuffix(".gz").rpartition(".")[0] for path in files]
    found = []
    for path, stem in zip(files, stems, strict=True):
        label = stem if stems.count(stem) == 1 else f"{path.resolve().parent.name}_{stem}"
        if is_volume(path):
            patient = load_volume(path).patient
        else:
            scan = load_scan(path)
            require_full(scan)
            patient = scan.patient
        found.append(Source(path, label, patient or label, _digest(path)))
    labels = [source.label for source in found]
    double = [source for source in found if labels.count(source.label) > 1]
    if double:
        raise InputError(f"{double[0].path} and {double[1].path} would both be called {double[0].label}: rename one.")
    return found


def _digest(path: Path) -> str:
    """SHA-256 of a file, or of all files of a folder in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if name.is_file():
            with open(name, "rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _require_other_patients(sources: list[Source], tuning: list[Source]) -> None:
    for source in sources:
        for other in tuning:
            if source.patient == other.patient or source.digest == other.digest:
                raise InputError(
                    f"{other.path} is of the same patient as {source.path}: tune on scans of other patients."
                )


def _settings(
    given: Conditions,
    methods: list[Method],
    accels: list[float],
    masks: list[str],
    sources: list[Source],
    tuning: list[Source],
) -> dict[str, Any]:
    """All that decides the results."""
    from mri_ambient import __version__

    return {
        **asdict(given),
        "methods": [method.label for method in methods],
        "accels": accels,
        "masks": masks,
        "scans": {source.label: source.digest for source in sources},
        "tuned_on": {source.label: source.digest for source in tuning},
        "priors": {str(method.prior): method.prior_hash for method in methods if method.prior is not None},
        "versions": {"mri-ambient": __version__, "torch": torch.__version__, "numpy": np.__version__},
        "processor": platform.processor() or platform.machine(),
    }


def _finished(path: Path) -> Benchmark | None:
    """The benchmark in a file, if there is one."""
    if not path.exists():
        return None
    try:
        return Benchmark(**json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise InputError(f"{path} is not the result of a benchmark: remove it, or choose another --out.") from error


def _tune(
    given: Conditions,
    sources: list[Source],
    patterns: list[tuple[float, str]],
    methods: list[Method],
    jobs: int,
    ledger: Ledger,
    reporter: Reporter,
) -> dict[str, dict[str, float]]:
    """Best weights of the classical methods, by "acceleration mask"."""
    names = tuple(method.label for method in methods if method.label in WEIGHTS)
    if not sources or not names:
        return {}
    tasks = [Tuning(given, tuple(sources), accel, mask, names) for accel, mask in patterns]
    results = run(do, tasks, jobs, ledger, "tuning", reporter)
    return {f"{t.accel:g} {t.mask}": found["weights"] for t, found in zip(tasks, results, strict=True)}


def summarise(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over volumes for every acceleration, mask and method, in the order of the rows."""
    groups: dict[tuple[str, float, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["mask"], row["accel"], row["method"]), []).append(row)
    found = []
    for (mask, accel, method), members in groups.items():
        patients = [row["patient"] for row in members]
        entry: dict[str, Any] = {"mask": mask, "accel": accel, "method": method, "volumes": len(members)}
        entry |= {"patients": len(set(patients))}
        for metric in METRICS:
            values = [float("inf") if row[metric] is None else row[metric] for row in members]
            low, high = bootstrap_interval(values, patients)
            entry[metric] = {"mean": float(np.mean(values)), "low": low, "high": high}
        entry["seconds"] = float(np.median([row["seconds"] for row in members]))
        entry["evaluations"] = float(np.mean([row["evaluations"] for row in members]))
        if all("coverage" in row for row in members):
            entry["coverage"] = _mean_coverage([row["coverage"] for row in members])
        found.append(entry)
    return found


def _mean_coverage(found: list[dict[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {"levels": found[0]["levels"], "samples": found[0]["samples"]}
    for kind in ("quantile", "normal", "student", "uncalibrated"):
        columns = zip(*(entry[kind] for entry in found), strict=True)
        result[kind] = [None if None in column else float(np.mean(column)) for column in columns]
    result["error_over_std"] = float(np.sqrt(np.mean([entry["error_over_std"] ** 2 for entry in found])))
    return result
