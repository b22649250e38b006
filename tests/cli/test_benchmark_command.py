"""``mri-ambient benchmark`` from the command line."""

import inspect
import json

import pytest
from cli_checks import files_in, one_line

from mri_ambient.cli import benchmark as command

SMALL = ["--accel", 2, "--mask", "random", "--slices", 1, "--samples", 2, "--steps", 2, "--device", "cpu"]
CHEAP = [*SMALL, "--method", "zero-filled", "--method", "sense"]


def test_table_files_and_the_same_again_as_json(run, full_scan, tiny_prior, tmp_path):
    words = [full_scan, *SMALL, "--method", "sense", "--method", "posterior", "--prior", tiny_prior, "--coverage"]
    result = run("benchmark", *words, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0] == "PSNR (dB)"
    assert lines[2].split() == ["mask", "R", "sense", "posterior", "tiny"]
    assert [line.split()[:2] for line in lines if "random" in line] == 3 * [["random", "2"]]
    assert "pixels within their 90 % error bar (error / standard deviation)" in lines
    assert "means of 1 volume of 1 patient; no intervals" in lines
    assert files_in(tmp_path / "out") == ["benchmark.json", "coverage.png", "panel.png", "quality.png"]
    again = run("benchmark", *words, "--out", tmp_path / "out", "--json")
    assert json.loads(again.stdout) == json.loads((tmp_path / "out" / "benchmark.json").read_text())
    quiet = run("benchmark", *words, "--out", tmp_path / "out", "--quiet")
    assert (quiet.stdout, quiet.stderr) == ("", "")


def test_wide_tables_are_not_cut(run, full_scan, tmp_path):
    methods = [word for name in ("zero-filled", "sense", "l1-wavelet", "tv") for word in ("--method", name)]
    words = [*SMALL, *methods, "--mask", "bernoulli"]
    result = run("benchmark", full_scan, *words, "--out", tmp_path / "out", env={"COLUMNS": "40"})
    (row,) = [line for line in result.stdout.splitlines() if "bernoulli" in line][:1]
    assert len(row.split()) == 6


def test_what_was_left_out_is_said(run, full_scan, tmp_path):
    result = run("benchmark", full_scan, *CHEAP, "--accel", 12, "--out", tmp_path / "out")
    assert result.exit_code == 0
    assert "left out: Acceleration 12 leaves 3 of 40 lines" in result.stdout


def test_stopping_says_how_to_go_on(run, full_scan, tmp_path, monkeypatch):
    def stop(*words, **settings):
        raise KeyboardInterrupt

    monkeypatch.setattr("mri_ambient.recon.benchmark.benchmark", stop)
    result = run("benchmark", full_scan, "--out", tmp_path / "out")
    assert result.exit_code == 130
    assert one_line(result) == f"Stopped; the same command continues the benchmark in {tmp_path / 'out'}."


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--method", "magic"], "magic"),
        (["--mask", "spiral"], "spiral"),
        (["--accel", 0.5], "at least 1"),
        (["--prior", "nothing"], "no prior 'nothing'"),
        (["--jobs", 0], "jobs must be at least 1"),
        (["--tune", "nowhere.h5"], "Nothing found at nowhere.h5"),
        (["--samples", 0], "samples"),
    ],
)
def test_wrong_options_are_one_sentence_and_leave_nothing(run, full_scan, tmp_path, words, expected):
    result = run("benchmark", full_scan, *words, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert expected in one_line(result)
    assert files_in(tmp_path / "out") == []


def test_undersampled_scans_and_other_settings_are_refused(run, scan, full_scan, tmp_path):
    result = run("benchmark", scan, *CHEAP, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "scan is undersampled (R = 2.00): a benchmark needs fully sampled scans" in one_line(result)
    run("benchmark", full_scan, *CHEAP, "--out", tmp_path / "out")
    result = run("benchmark", full_scan, *CHEAP, "--seed", 1, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "other settings: seed 0 (now 1). Choose another --out." in one_line(result)


def test_defaults_are_those_of_the_library():
    from mri_ambient.recon import benchmark as library
    from mri_ambient.recon.comparison import Conditions

    shown = {name: p.default for name, p in inspect.signature(command.benchmark).parameters.items()}
    conditions = Conditions()
    fields = set(Conditions.__dataclass_fields__)
    assert {name: shown[name] for name in fields} == {name: getattr(conditions, name) for name in fields}
    assert (command._METHODS, command._MASKS) == (library.METHODS, library.MASKS)
    assert command._ACCELERATIONS == library.ACCELERATIONS
