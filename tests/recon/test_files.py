"""Scans on disk to results on disk: which files, where to, in what order, how much memory."""

import shutil
from itertools import pairwise
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from mri_ambient.denoiser import PRESETS, Denoiser
from mri_ambient.errors import InputError
from mri_ambient.prior import Prior
from mri_ambient.recon import meter
from mri_ambient.recon.files import FileSettings, reconstruct_file, reconstruct_files
from mri_ambient.recon.meter import counted, duration
from mri_ambient.recon.pipeline import REFINEMENT, Reconstructor, reconstruct
from mri_ambient.recon.places import check_folder, find_scans, output_folders
from mri_ambient.recon.result import ReconstructionWriter, load_reconstruction
from mri_ambient.recon.settings import Settings
from mri_ambient.scan import Scan, load_scan, write_scan


@pytest.fixture
def scan_file(tmp_path):
    """Three 32 x 24 slices of 3 coils with 12 central and every second other line."""
    rng = np.random.default_rng(0)
    kspace = rng.normal(size=(3, 3, 32, 24)) + 1j * rng.normal(size=(3, 3, 32, 24))
    kspace[..., 16, 12] += 100
    mask = np.zeros(24, bool)
    mask[::2] = mask[6:18] = True
    path = tmp_path / "in" / "scan.h5"
    write_scan(Scan.from_arrays(kspace.astype(np.complex64), mask, noise_std=1.0, name="scan"), path)
    return path


@pytest.fixture
def prior():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Prior(Denoiser(PRESETS["tiny"]).eval().requires_grad_(False), {}, "random", "0")


def test_a_damaged_slice_is_refused_before_any_work(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    kspace = (rng.normal(size=(40, 2, 16, 16)) + 1j * rng.normal(size=(40, 2, 16, 16))).astype(np.complex64)
    write_scan(Scan.from_arrays(kspace, noise_std=1.0), tmp_path / "scan.h5")
    with h5py.File(tmp_path / "scan.h5", "a") as file:
        file["kspace"][37, 0, 0, 0] = np.nan
    monkeypatch.setattr(Reconstructor, "slice", None)
    with pytest.raises(InputError, match="slice 37"):
        reconstruct_files([tmp_path / "scan.h5"], tmp_path, settings=Settings("sense"))


class Log:
    def __init__(self):
        self.stages, self.lines = [], []

    def stage(self, text, done, total):
        self.stages.append((text, done, total))

    def say(self, text):
        self.lines.append(text)


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


class TestFindScans:
    def test_folders_hold_scans_at_any_depth(self, tmp_path):
        touch(tmp_path / "b.h5", tmp_path / "p" / "a.h5", tmp_path / "p" / "t1.nii.gz", tmp_path / "b_recon.h5")
        assert find_scans([tmp_path]) == [tmp_path / "b.h5", tmp_path / "p" / "a.h5"]

    def test_patterns(self, tmp_path, monkeypatch):
        touch(tmp_path / "a1.h5", tmp_path / "a2.h5", tmp_path / "b.h5")
        assert find_scans([str(tmp_path / "a?.h5")]) == [tmp_path / "a1.h5", tmp_path / "a2.h5"]
        monkeypatch.chdir(tmp_path)
        assert find_scans(["a*.h5"]) == [Path("a1.h5"), Path("a2.h5")]

    def test_order_is_kept_and_nothing_is_done_twice(self, tmp_path, monkeypatch):
        touch(tmp_path / "a.h5", tmp_path / "b.h5")
        monkeypatch.chdir(tmp_path)
        assert find_scans(["b.h5", tmp_path, tmp_path / "b.h5"]) == [Path("b.h5"), tmp_path / "a.h5"]

    def test_a_missing_file_is_left_to_the_reader(self):
        assert find_scans(["missing.h5"]) == [Path("missing.h5")]

    def test_a_name_with_brackets_is_a_name_where_it_exists(self, tmp_path):
        touch(tmp_path / "a[1].h5")
        assert find_scans([tmp_path / "a[1].h5"]) == [tmp_path / "a[1].h5"]

    @pytest.mark.parametrize("pattern", ["*.h5", "."])
    def test_nothing_found(self, tmp_path, monkeypatch, pattern):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(InputError):
            find_scans([pattern])

    def test_only_volumes_found(self, tmp_path):
        touch(tmp_path / "a.nii")
        with pytest.raises(InputError, match="no scan"):
            find_scans([tmp_path])


class TestOutputFolders:
    def test_one_folder_where_names_differ(self):
        scans = [Path("p/a.h5"), Path("q/b.h5")]
        assert output_folders(scans, Path("out")) == [(scan, Path("out")) for scan in scans]

    def test_folders_are_repeated_where_names_are_equal(self):
        scans = [Path("x/p/kspace.h5"), Path("x/q/r/kspace.h5")]
        assert [folder for _, folder in output_folders(scans, Path("out"))] == [Path("out/p"), Path("out/q/r")]

    def test_results_never_overwrite_each_other(self):
        with pytest.raises(InputError, match="same result"):
            output_folders([Path("x/a.h5"), Path("x/a.hdf5")], Path("out"))


class TestCheckFolder:
    def test_creates_nothing(self, tmp_path):
        check_folder(tmp_path / "a" / "b")
        assert list(tmp_path.iterdir()) == []

    def test_below_a_file(self, tmp_path):
        touch(tmp_path / "a")
        with pytest.raises(InputError, match="is a file"):
            check_folder(tmp_path / "a" / "b")

    def test_space(self, tmp_path):
        free = shutil.disk_usage(tmp_path).free
        check_folder(tmp_path / "a", free // 2)
        with pytest.raises(InputError, match="MB left"):
            check_folder(tmp_path / "a", free * 2)


class TestReconstructFile:
    def test_equals_the_reconstruction_in_memory(self, scan_file, prior, tmp_path):
        settings = Settings(samples=2, steps=3, seed=4, keep_samples=True, keep_maps=True)
        reconstruct_file(scan_file, tmp_path, prior, settings, FileSettings())
        stored = load_reconstruction(tmp_path / "scan_recon.h5")
        expected = reconstruct(
            load_scan(scan_file), prior, samples=2, steps=3, seed=4, keep_samples=True, keep_maps=True, precision="fp32"
        )
        for name in ("mean", "std", "samples", "sensitivity_maps"):
            torch.testing.assert_close(getattr(stored, name), getattr(expected, name), msg=name)

    def test_every_slice_is_written_before_the_next_one_is_read(self, scan_file, tmp_path, monkeypatch):
        events = []
        reconstruct_slice, write = Reconstructor.slice, ReconstructionWriter.write

        def reading(self, index):
            events.append(f"read {index}")
            return reconstruct_slice(self, index)

        def writing(self, index, *arrays):
            events.append(f"write {index}")
            write(self, index, *arrays)

        monkeypatch.setattr(Reconstructor, "slice", reading)
        monkeypatch.setattr(ReconstructionWriter, "write", writing)
        reconstruct_file(scan_file, tmp_path, None, Settings("zero-filled"), FileSettings())
        assert events == ["read 0", "write 0", "read 1", "write 1", "read 2", "write 2"]

    def test_the_output_is_opened_before_the_first_slice(self, scan_file, tmp_path, monkeypatch):
        def refuse(self, index):
            raise AssertionError("too late")

        monkeypatch.setattr(Reconstructor, "slice", refuse)
        (tmp_path / "scan_recon.h5").mkdir()
        with pytest.raises(InputError, match="folder"):
            reconstruct_file(scan_file, tmp_path, None, Settings("zero-filled"), FileSettings())

    def test_progress_counts_network_calls(self, scan_file, prior, tmp_path):
        log = Log()
        reconstruct_file(scan_file, tmp_path, prior, Settings(samples=2, steps=3), FileSettings(), reporter=log)
        done = [stage[1] for stage in log.stages]
        (planned,) = {total for _, _, total in log.stages}
        assert done == sorted(done)
        assert done[-1] == planned
        assert max(b - a for a, b in pairwise(done)) == 4  # never more than one call of the network at once
        assert load_reconstruction(tmp_path / "scan_recon.h5").attributes["network_evaluations"] == planned
        assert not prior.denoiser._forward_hooks  # the prior is handed back as it came

    def test_progress_in_slices_without_a_network(self, scan_file, tmp_path):
        log = Log()
        reconstruct_file(scan_file, tmp_path, None, Settings("sense"), FileSettings(), reporter=log)
        assert log.stages == [("scan", 1, 3), ("scan", 2, 3), ("scan", 3, 3)]

    @pytest.mark.parametrize("method", ["posterior", "zero-filled"])
    def test_long_work_is_announced_once(self, scan_file, prior, tmp_path, monkeypatch, method):
        clock = iter(range(0, 10**6, 100))  # every look at the clock takes 100 s
        monkeypatch.setattr(meter.time, "monotonic", lambda: next(clock))
        log = Log()
        reconstruct_file(scan_file, tmp_path, prior, Settings(method, 2, 5), FileSettings(), reporter=log)
        (announced,) = [line for line in log.lines if "will take about" in line]
        # Classical: one look a slice. Posterior: 100 s to the second call (5 images), then 100 s for two of 4 images.
        total = 3 * (1 + 4 * 5 + REFINEMENT) + 3 * (1 + 2 * 5 + REFINEMENT)
        minutes = (100 + 100 / 8 * (total - 5)) / 60
        assert announced.endswith({"posterior": f"about {minutes:.0f} min", "zero-filled": "about 5 min"}[method])

    def test_short_work_is_not(self, scan_file, tmp_path):
        log = Log()
        reconstruct_file(scan_file, tmp_path, None, Settings("sense"), FileSettings(), reporter=log)
        assert not any("will take" in line for line in log.lines)

    def test_estimated_noise_and_detected_mask_are_named(self, tmp_path, scan_file):
        import h5py

        with h5py.File(scan_file, "r+") as file:
            del file["mask"]
            del file.attrs["noise_std"]
        summary = reconstruct_file(scan_file, tmp_path, None, Settings("sense"), FileSettings())
        assert summary["mask_source"] == "detected from zeros"
        assert summary["noise_source"] == "estimated"
        assert summary["noise_std"] == pytest.approx(1, rel=0.2)


class TestReconstructFiles:
    def test_first_error_is_raised_without_a_handler(self, scan_file, tmp_path):
        with pytest.raises(InputError, match="no file"):
            reconstruct_files(["missing.h5", scan_file], tmp_path, settings=Settings("sense"))

    def test_handler_is_told_and_the_others_are_done(self, scan_file, tmp_path):
        told = []
        summaries = reconstruct_files(
            ["missing.h5", scan_file],
            tmp_path,
            settings=Settings("sense"),
            on_error=lambda scan, error: told.append((scan, type(error))),
        )
        assert told == [(Path("missing.h5"), InputError)]
        assert [summary["scan"] for summary in summaries] == [str(scan_file)]

    def test_classical_methods_need_no_prior(self, scan_file, tmp_path):
        reconstruct_files([scan_file], tmp_path, prior="nonesuch", settings=Settings("sense"))
        with pytest.raises(InputError, match="nonesuch"):
            reconstruct_files([scan_file], tmp_path, prior="nonesuch", settings=Settings("mmse"))


@pytest.mark.parametrize(
    ("seconds", "text"), [(1.4, "1 s"), (98, "98 s"), (100, "2 min"), (3600, "60 min"), (7200, "2.0 h")]
)
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_counted():
    assert [counted(number, "slice") for number in (0, 1, 2)] == ["0 slices", "1 slice", "2 slices"]
