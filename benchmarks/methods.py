"""The training methods compared: same scans, same network, same computing time, patient 04.

    python benchmarks/methods.py --data ../shared/data/open_ms --out runs/methods --table table.md

Trains every method on every third slice of patients 01, 03 and 12 (FLAIR, T1, T2; 160 x 160, 8 coils, mask and noise
fixed per slice), at R = 4 and noise 0.02 with two seeds, at other noise levels and accelerations with one or two, and
reconstructs a slice of each contrast of patient 04 with each prior. A method gets as many images as fit the computing
time of `--images` images of the ambient method (`COST`: seconds of a step over one of ambient, measured alone). EM
starts from the ambient prior, with half of that on top.

Finished trainings and rows are kept in `--out`: the same command continues, and several processes may share the work
with `--only` (beginnings of names). `--table` is written from what is there.
"""

import argparse
import json
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from mri_ambient.allocator import keep_freed_memory
from mri_ambient.calibration import calibrate, prepare_slice
from mri_ambient.dataset import write_atomically
from mri_ambient.metrics import psnr, ssim
from mri_ambient.operators import MaskPattern
from mri_ambient.operators.classical import l1_wavelet
from mri_ambient.preparation import Simulation, prepare
from mri_ambient.recon.em import train
from mri_ambient.recon.pipeline import Reconstructor, open_prior
from mri_ambient.recon.settings import Settings
from mri_ambient.run_state import choose_device
from mri_ambient.simulate import simulate_scan
from mri_ambient.training_data import first_reconstruction
from mri_ambient.volumes import Volume, load_volume

MATRIX, EVERY = 160, 3
CONTRASTS = ("FLAIR", "T1W", "T2W")
FAMILIES, ACCELS = ("random", "equispaced"), (2, 4, 6, 8, 12)
SAMPLES, STEPS = 2, 25
WEIGHTS = (0.1, 0.2, 0.4, 0.8, 1.6)  # of L1-wavelet, in noise standard deviations; the best on patient 01 is taken


@dataclass(frozen=True, eq=False)
class Job:
    """A prior to be trained and looked at."""

    method: str
    variant: str = ""
    accel: float = 4
    noise: float = 0.02
    seed: int = 0
    share: float = 1.0  # of the budget
    extra: dict = field(default_factory=dict)
    tested: bool = True

    @property
    def label(self) -> str:
        return f"{self.method} {self.variant}".strip()

    @property
    def name(self) -> str:
        text = f"{self.label} R{self.accel:g} noise{self.noise:g} seed{self.seed}"
        return text.replace(" ", "-") + ("" if self.tested else "-part")

    @property
    def scans(self) -> str:
        """Name of the prepared training slices."""
        kind = "references" if self.method == "supervised" or self.variant == "clean" else "undersampled"
        return f"{kind}-R{self.accel:g}-noise{self.noise:g}"


COST = {  # seconds of a step over one of ambient, the same core alone
    "supervised": 0.97,
    "gsure": 2.5,
    "tweedie": 2.1,
    "ambient published": 1.35,
    "ssdu weighted": 7.4,
    "ssdu published": 7.4,
    "bootstrap view": 0.97,
    "bootstrap undersampled": 1.55,
    "bootstrap clean": 1.55,
}


def jobs(out):
    """All trainings, in the order of their use."""
    found = []
    for seed in (0, 1):
        found += [
            Job("ambient", "weighted", seed=seed),
            Job("supervised", seed=seed),
            Job("gsure", seed=seed),
            Job("tweedie", seed=seed),
            Job("ambient", "published", seed=seed),
            Job("ssdu", "weighted", seed=seed),
            Job("ssdu", "published", seed=seed),
        ]
        view = Job("bootstrap", "view", seed=seed, share=0.3, extra={"view": "centre:12"}, tested=False)
        composed = {"views": (str(out / view.name),)}
        found += [view, Job("bootstrap", "undersampled", seed=seed, share=0.7, extra=composed)]
        found += [Job("bootstrap", "clean", seed=seed, share=0.7, extra=composed)]
        start = {"init": str(out / Job("ambient", "weighted", seed=seed).name), "laps": 1}
        found += [Job("em", seed=seed, share=0.5, extra=start)]
    for noise in (0.1, 0.2):
        found += [Job(*m, noise=noise) for m in (("ambient", "weighted"), ("ambient", "published"), ("tweedie",))]
        found += [Job(*m, noise=noise) for m in (("gsure",), ("ssdu", "weighted"), ("supervised",))]
    for accel in (2, 8):
        found += [Job("ambient", "weighted", accel=accel, seed=seed) for seed in (0, 1)]
    return found


def training_volumes(data):
    """Every third slice of the training patients."""
    volumes = []
    for path in sorted(data.glob("patient*/*.nii.gz")):
        if "patient04" not in path.parts:
            volume = load_volume(path)
            volumes.append(Volume(volume.magnitude[1::EVERY], volume.affine, volume.patient, volume.name))
    return volumes


def prepared(args, job):
    """Folder of the prepared training slices of a job, made if it is not there."""
    folder = args.out / "scans" / job.scans
    reference = job.scans.startswith("references")
    simulation = Simulation(8, job.noise, (MATRIX,))
    prepare(
        training_volumes(args.data), folder, mask="random", accel=(job.accel,), simulation=simulation, seed=0,
        reconstruct=None if reference else first_reconstruction,
    )  # fmt: skip
    return folder


def link(source, target):
    """A folder with the same files, so that a run can replace some of them."""
    target.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        if not (target / path.name).exists():
            (target / path.name).hardlink_to(path)


def trained(args, job):
    """The prior of a job, trained if it is not there; returns its folder and card."""
    folder = args.out / job.name
    files = [str(p) for p in sorted(args.data.glob("patient*/*.nii.gz")) if "patient04" not in p.parts]
    if not (folder / "prior.safetensors").exists():
        link(prepared(args, job), folder / "data")
        for number, file in enumerate(files):  # it was prepared from every third slice of these
            marker = folder / "data" / f"{number:05d}.json"
            source = "/".join(Path(file).resolve().parts[-2:])
            write_atomically(marker, json.dumps(json.loads(marker.read_text()) | {"source": source}).encode())
    images = round(args.images * job.share / COST.get(job.label, 1.0))
    variant = "" if job.variant == "view" else job.variant
    settings = {"method": job.method, "variant": variant, "accel": job.accel, "noise": job.noise, "seed": job.seed}
    run = train(files, out=folder, images=images, matrices=(MATRIX,), device="cpu", **settings, **job.extra)
    return folder, run.card


def test_scan(args, patient, contrast, family, accel, noise):
    """One slice through the middle of a simulated head."""
    volume = load_volume(args.data / patient / f"study1_{contrast}.nii.gz")
    chosen, name = [volume.shape[0] // 2], f"{patient}_{contrast}"
    pattern = MaskPattern(family, accel)
    return simulate_scan(volume, matrix=MATRIX, pattern=pattern, slices=chosen, noise_std=noise, name=name)


def cells(job):
    """Masks and accelerations that a prior is tested on."""
    return [(f, a) for f in FAMILIES for a in ACCELS] if job.noise == 0.02 else [("random", a) for a in (2, 4, 8)]


def tested(args, job):
    """Rows for every scan of patient 04, written when all are there."""
    path = args.out / job.name / "rows.json"
    if path.exists():
        return json.loads(path.read_text())
    folder, card = trained(args, job)
    prior = open_prior(str(folder), *choose_device("cpu", "auto"))
    methods = ("mmse",) if job.method == "ssdu" else ("mmse", "posterior")
    rows = []
    for family, accel in cells(job):
        for contrast in CONTRASTS:
            scan = test_scan(args, "patient04", contrast, family, accel, job.noise)
            truth = scan.target.numpy()
            for method in methods:
                result = next(Reconstructor(scan, prior, Settings(method, SAMPLES, STEPS, calibrate=False)).slices())
                image = result.mean.abs().numpy()[None]
                row = {"method": job.label, "trained": job.accel, "noise": job.noise, "seed": job.seed}
                row |= {"mask": family, "accel": accel, "contrast": contrast, "estimate": method}
                rows.append(row | {"psnr": psnr(truth, image), "ssim": ssim(truth, image)})
    cost = {"images": card["images"], "seconds": card["training_seconds"]}
    write_atomically(path, json.dumps({"cost": cost, "rows": rows}).encode())
    return {"cost": cost, "rows": rows}


def wavelet(args, noise):
    """Rows of L1-wavelet, its weight tuned on patient 01 for each acceleration, random masks."""
    path = args.out / f"wavelet-noise{noise:g}.json"
    if path.exists():
        return json.loads(path.read_text())

    def image(scan, weight):
        item = prepare_slice(scan, 0, calibration := calibrate(scan))
        result = l1_wavelet(item.kspace, item.operator, regularisation=weight * item.noise_std)
        return (result.abs() * calibration.scale).numpy()[None]

    rows, best = [], {}
    for family, accel in cells(Job("ambient", noise=noise)):
        if accel not in best:
            scans = [test_scan(args, "patient01", c, "random", accel, noise) for c in CONTRASTS]
            best[accel] = max(WEIGHTS, key=lambda w: np.mean([psnr(s.target.numpy(), image(s, w)) for s in scans]))
        for contrast in CONTRASTS:
            scan = test_scan(args, "patient04", contrast, family, accel, noise)
            truth, estimate = scan.target.numpy(), image(scan, best[accel])
            row = {"method": "L1-wavelet", "noise": noise, "mask": family, "accel": accel, "contrast": contrast}
            rows.append(row | {"psnr": psnr(truth, estimate), "ssim": ssim(truth, estimate)})
    write_atomically(path, json.dumps(rows).encode())
    return rows


def finished(args):
    """Costs by job, and all rows, of what is there."""
    costs, rows = {}, []
    for job in jobs(args.out):
        path = args.out / job.name / "rows.json"
        if job.tested and path.exists():
            content = json.loads(path.read_text())
            costs[job] = content["cost"]
            rows += content["rows"]
    return costs, rows


def spread(values):
    """Mean over contrasts and seeds, with half the distance of the seeds' means."""
    seeds = [np.mean(v) for v in values]
    distance = f" ± {(max(seeds) - min(seeds)) / 2:.2f}" if len(seeds) > 1 else ""
    return f"{np.mean(seeds):.2f}{distance}"


def table(title, methods, rows, columns):
    """Markdown: a line for every method and estimate, a column for every (mask, R); a row's training is in its name."""
    head = " | ".join(f"{family} {accel:g}" for family, accel in columns)
    text = [f"{title}\n", f"| learned by | estimate | {head} |", "|---|---|" + "---|" * len(columns)]
    for name, keep in methods:
        chosen = [r for r in rows if keep(r)]
        for estimate in dict.fromkeys(r.get("estimate", "") for r in chosen):
            cells = []
            for family, accel in columns:
                here = [
                    r for r in chosen if (r["mask"], r["accel"], r.get("estimate", "")) == (family, accel, estimate)
                ]
                seeds = sorted({r.get("seed", 0) for r in here})
                cells.append(
                    spread([[r["psnr"] for r in here if r.get("seed", 0) == s] for s in seeds]) if here else ""
                )
            text.append(f"| {name} | {estimate} | {' | '.join(cells)} |")
    return "\n".join(text) + "\n"


def report(args):
    """All tables, of what is there."""
    costs, rows = finished(args)
    usual = [r for r in rows if r["noise"] == 0.02 and r["trained"] == 4]
    labels = list(dict.fromkeys(r["method"] for r in usual))
    everything = [(f, a) for f in FAMILIES for a in ACCELS]

    def of(label, noise=0.02, trained=4):
        def keep(r):
            return (r["method"], r["noise"], r.get("trained", trained)) == (label, noise, trained)

        return keep

    text = [
        table(
            "PSNR (dB), trained at R = 4, noise 0.02",
            [("(L1-wavelet)", of("L1-wavelet")), *((label, of(label)) for label in labels)],
            usual + wavelet(args, 0.02),
            everything,
        ),
    ]
    learned_at = sorted({r["trained"] for r in rows})
    if len(learned_at) > 1:
        methods = [(f"R = {accel}", of("ambient weighted", trained=accel)) for accel in learned_at]
        text.append(
            table("PSNR (dB) by acceleration of the training scans, ambient weighted", methods, rows, everything)
        )
    for noise in sorted({r["noise"] for r in rows} - {0.02}):
        methods = [("(L1-wavelet)", of("L1-wavelet", noise)), *((label, of(label, noise)) for label in labels)]
        columns = [("random", a) for a in (2, 4, 8)]
        text.append(table(f"PSNR (dB), scans with noise {noise}", methods, rows + wavelet(args, noise), columns))
    text += ["Cost on one core\n", "| training | images | seconds |", "|---|---|---|"]
    text += [f"| {job.name} | {cost['images']} | {cost['seconds']} |" for job, cost in costs.items()]
    args.table.write_text("\n".join(text) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, default=7200)
    parser.add_argument("--only", action="append", help="beginning of the names to work on; may be repeated")
    parser.add_argument("--table", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    for job in jobs(args.out):
        if args.only and not job.name.startswith(tuple(args.only)):
            continue
        began = time.perf_counter()
        if job.tested:
            tested(args, job)
        else:
            trained(args, job)
        print(f"{job.name}: {time.perf_counter() - began:.0f} s", flush=True)
    if args.table:
        report(args)


if __name__ == "__main__":
    main()
