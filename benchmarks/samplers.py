"""Published posterior samplers side by side on simulated slices, with the same prior, data, start and samples.

    python benchmarks/samplers.py --data ../shared/data/open_ms --prior brain-full --prior brain-r4

Development patients only (their slices were among the training data of the shipped priors, so that errors are smaller
and spreads better matched than on new patients). All samplers start from the one-step reconstruction. Printed as a
Markdown table of means over slices: PSNR of a single sample and of the mean of all, the spread of the magnitude over
its error in the head (1 is calibrated; below 1 error bars are too small), network evaluations a sample (a pass back
through the network counts as two), and seconds a sample.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch

from mri_ambient.calibration import calibrate, prepare_slice
from mri_ambient.metrics import psnr
from mri_ambient.operators import MaskPattern, Sense, normal_solver
from mri_ambient.prior import load_prior
from mri_ambient.recon.posterior import sample_posterior
from mri_ambient.recon.samplers import (
    ADPS,
    DAPS,
    DDS,
    DPS,
    MMPS,
    DiffPIR,
    PnPDM,
    Problem,
    further_mask,
    sample,
    through_mask,
)
from mri_ambient.simulate import simulate_scan
from mri_ambient.streams import stream
from mri_ambient.volumes import load_volume

HIGH = 0.5  # as the default: the start is good, so that higher levels are a waste of steps
ROWS = [  # name, sampler, steps
    ("DDS", DDS(HIGH), 25),
    ("DiffPIR", DiffPIR(HIGH), 25),
    ("DAPS, 1 flow step", DAPS(HIGH, flow_steps=1), 25),
    ("DAPS, 5 flow steps", DAPS(HIGH), 5),
    ("PnP-DM, 5 reverse steps", PnPDM(HIGH, prior_steps=5), 5),
    ("PnP-DM, 10 reverse steps", PnPDM(HIGH), 20),
    ("MMPS, 1 iteration", MMPS(HIGH), 8),
    ("MMPS, 3 iterations", MMPS(HIGH, iterations=3), 25),
    ("DPS", DPS(HIGH), 8),
    ("DPS", DPS(HIGH), 60),
    ("A-DPS", ADPS(HIGH), 8),
    ("A-DPS", ADPS(), 500),  # as published
]


def simulated(data, patient, contrast, accel, matrix):
    """A slice through the middle of the head, 8 coils, noise 0.02."""
    volume = load_volume(data / patient / f"study1_{contrast}.nii.gz")
    pattern, chosen, name = MaskPattern("random", accel), [volume.shape[0] // 2], f"{patient}_{contrast}"
    return simulate_scan(volume, matrix=matrix, pattern=pattern, slices=chosen, seed=0, name=name)


def figures(samples, truth, seconds, evaluations):
    """A row's numbers."""
    count, magnitude = len(samples), samples.abs()
    head = truth > 0.05 * truth.max()
    spread = ((1 + 1 / count) * magnitude.var(0)[head].mean()).sqrt()
    error = (magnitude.mean(0) - truth)[head].square().mean().sqrt()
    single = np.mean([psnr(truth[None].numpy(), m[None].numpy()) for m in magnitude])
    return [
        single,
        psnr(truth[None].numpy(), samples.mean(0).abs()[None].numpy()),
        float(spread / error),
        evaluations,
        seconds / count,
    ]


def compare(scan, prior, count, only):
    """Numbers by row name for one slice."""
    item = prepare_slice(scan, 0, calibration := calibrate(scan), torch.device("cpu"))
    truth = scan.target[0] / calibration.scale
    op, noise_std = item.operator, item.noise_std
    began = time.perf_counter()
    solver = normal_solver(op)
    print(f"{scan.name}: the decomposition took {time.perf_counter() - began:.2f} s", flush=True)
    with torch.no_grad():
        start = prior.denoiser(op.adjoint(item.kspace)[None], noise_std, op)[0]
    further = Sense(op.sensitivity_maps, further_mask(op.image_shape[-1], 4, generator=stream(0, "further")))
    masked = through_mask(prior.denoiser, further)

    def streams():
        return [stream(0, "sample", k) for k in range(count)]

    def default():
        posterior = prior.posterior(item.kspace, op, noise_std, solver)
        samples = sample_posterior(posterior, samples=count, steps=25, start=start, generators=streams())
        return samples, posterior.evaluations

    def published(sampler, steps):
        denoiser = masked if isinstance(sampler, ADPS) else prior.denoiser
        problem = Problem(denoiser, item.kspace, op, noise_std, solver)
        return sample(sampler, problem, count, steps, streams(), start), problem.evaluations

    found = {"one step": [np.nan, psnr(truth[None].numpy(), start.abs()[None].numpy()), np.nan, 1, np.nan]}
    runs = {"default, 25 levels": default}
    runs |= {f"{name}, {steps} levels": lambda a=(s, steps): published(*a) for name, s, steps in ROWS}
    for name, run in runs.items():
        if only and not any(word in name for word in only):
            continue
        began = time.perf_counter()
        samples, evaluations = run()
        found[name] = figures(samples, truth, time.perf_counter() - began, evaluations)
        print(name, " ".join(f"{v:.2f}" for v in found[name]), flush=True)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--prior", action="append", required=True, help="may be repeated")
    parser.add_argument("--accel", type=float, nargs="+", default=[4, 8])
    parser.add_argument("--patient", nargs="+", default=["patient01", "patient12"])
    parser.add_argument("--contrast", default="FLAIR")
    parser.add_argument("--matrix", type=int, default=160)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--only", nargs="*", help="rows whose name contains one of these words")
    args = parser.parse_args()
    torch.set_num_threads(1)
    text = []
    for name in args.prior:
        prior = load_prior(name)
        for accel in args.accel:
            scans = [simulated(args.data, p, args.contrast, accel, args.matrix) for p in args.patient]
            rows = [compare(scan, prior, args.samples, args.only) for scan in scans]
            text += [f"\n{name}, R = {accel:g}, {args.contrast}, {len(rows)} slices\n"]
            text += [
                "| sampler | PSNR single | PSNR mean | spread / error | evaluations | s |",
                "|---|---|---|---|---|---|",
            ]
            for row in rows[0]:
                values = np.mean([r[row] for r in rows], axis=0)
                text.append("| {} | {:.2f} | {:.2f} | {:.2f} | {:.0f} | {:.2f} |".format(row, *values))
    print("\n".join(text))


if __name__ == "__main__":
    main()
