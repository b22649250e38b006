"""All measurements of speed in one go, written as Markdown with machine, date and versions.

    python benchmarks/run_all.py --out benchmarks/results.md      # about an hour on two cores

Peers: ``pip install -e ".[bench]"``, and BART on the PATH. One that is absent is left out.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import measure

HERE = Path(__file__).resolve().parent
TINY_SLICE, TINY_CASE = ["--coils", "4", "--size", "24", "40"], ["--case", "4", "48", "40"]
SCRIPTS: tuple[tuple[str, str, list[str], list[str]], ...] = (  # title, script, arguments, arguments to try it out
    ("Calibration", "espirit.py", [], [*TINY_CASE, "--volume", "2", "4", "48", "40"]),
    ("Operators", "operators.py", ["--runs", "20"], [*TINY_SLICE, "--batch", "2", "4", "24", "40"]),
    ("Solves", "solves.py", [], [*TINY_SLICE, "--widths", "32"]),
    (
        "Solves, larger slice",
        "solves.py",
        ["--coils", "16", "--size", "320", "320", "--many", "25", "1", "--widths"],
        [],
    ),
    (
        "Training and sampling",
        "training.py",
        ["--presets", "small"],
        ["--presets", "tiny", "--steps", "3", "--slice", "4", "32", "40"],
    ),
    ("Growth", "growth.py", ["--runs", "1", "--largest", "1000"], ["--parts", "slices", "--largest", "4"]),
    ("Start-up", "startup.py", [], []),
)
INTRODUCTION = """# Speed

Made by `python benchmarks/run_all.py --out benchmarks/results.md`, or a section at a time with `--only`.

Programs take turns; ratios are formed within a turn; where three figures stand they are minimum, median and maximum.
What each table compares, and how its errors are defined, is in the docstring of its script; what was tried and did not
help is in `benchmarks/README.md`.
"""


def section(title: str, script: str, arguments: list[str], environment: dict[str, str]) -> str:
    """Headline, command and output of one script.

    Raises
    ------
    subprocess.CalledProcessError
        If the script fails.
    """
    command = [sys.executable, str(HERE / script), *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    shown = " ".join(["python", f"benchmarks/{script}", *arguments])
    threads = int(environment[measure.THREAD_VARIABLES[0]])
    return f"## {title}\n\n`{shown}`. {measure.machine(threads)}\n\n{done.stdout.strip()}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1), help="for all programs")
    parser.add_argument("--runs", type=int, default=5, help="where a section does not set its own")
    parser.add_argument("--only", nargs="+", help="titles of sections; others in the file stay")
    parser.add_argument("--tiny", action="store_true", help="small sizes, to see that everything works")
    options = parser.parse_args()
    environment = os.environ | dict.fromkeys(measure.THREAD_VARIABLES, str(options.threads))
    before = options.out.read_text() if options.out.exists() else ""
    kept = {part.partition("\n")[0]: f"## {part.strip()}\n" for part in before.split("\n## ")[1:]}
    for title, script, arguments, tiny in SCRIPTS:
        if (options.only and title not in options.only) or (options.tiny and not tiny):
            continue
        given = ["--runs", str(options.runs), *(tiny if options.tiny else arguments)]  # of two, the last counts
        kept[title] = section(title, script, given, environment)
        options.out.write_text("\n".join([INTRODUCTION, *(kept[name] for name, *_ in SCRIPTS if name in kept)]))


if __name__ == "__main__":
    main()
