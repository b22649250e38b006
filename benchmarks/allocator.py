"""What keeping freed memory (mri_ambient.allocator) is worth: one training step of a preset, in two fresh processes.

python benchmarks/allocator.py --preset small
"""

import argparse
import subprocess
import sys

STEP = """
import sys, time, torch
from mri_ambient.allocator import keep_freed_memory
from mri_ambient.denoiser import PRESETS, Denoiser
if sys.argv[1] == "keep":
    keep_freed_memory()
model = Denoiser(PRESETS[sys.argv[2]]).to(memory_format=torch.channels_last)
model.precision = torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else torch.float32
noisy, times = torch.randn(8, 64, 160, dtype=torch.complex64), []
for _ in range(7):
    began = time.perf_counter()
    model(noisy, 0.1).abs().square().mean().backward()
    times.append(time.perf_counter() - began)
print(sorted(times[2:])[2])
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="small")
    args = parser.parse_args()
    seconds = {}
    for mode in ("default", "keep"):
        done = subprocess.run(
            [sys.executable, "-c", STEP, mode, args.preset], check=True, capture_output=True, text=True
        )
        seconds[mode] = float(done.stdout)
        print(f"{mode:8s} {seconds[mode]:.3f} s a step of 8 strips of 64 x 160 (median of 5)")
    print(f"ratio {seconds['default'] / seconds['keep']:.1f}")


if __name__ == "__main__":
    main()
