"""Sources are found in one walk, opened once, and prepared once for all runs that need the same arrays."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace

import h5py
import numpy as np
import pytest
import torch
from raw_files import bart_array, coil_images, fft2c, write_cfl

from mri_ambient import preparation, training_data
from mri_ambient.cache import Cache
from mri_ambient.config import TrainConfig
from mri_ambient.dataset import KINDS, PreparedSlices, save_array
from mri_ambient.errors import InputError
from mri_ambient.operators import MaskPattern
from mri_ambient.phantoms import phantom_volume
from mri_ambient.preparation import Simulation, find_sources, prepare
from mri_ambient.reporter import Silent
from mri_ambient.scan import load_scan, write_scan
from mri_ambient.simulate import simulate_scan
from mri_ambient.training_data import first_reconstruction

SIZE = (40, 44)


def zero_filled(item):
    """A first reconstruction that costs nothing."""
    return item.operator.adjoint(item.kspace)


PREPARE = """
import sys
from pathlib import Path
from mri_ambient.cache import Cache
from mri_ambient.preparation import Simulation, find_sources, prepare

folder = Path(sys.argv[1])
cache = Cache(folder / "cache", 1e9)
print("ready", flush=True)
sys.stdin.readline()
scans = find_sources([folder / "*.h5"])
prepare(scans, folder / sys.argv[2], mask="random", accel=(2,), simulation=Simulation(2), seed=0, cache=cache)
print(cache.hits)
"""

SETTINGS = {"mask": "random", "accel": (2, 3), "simulation": Simulation(2), "seed": 0, "reconstruct": zero_filled}


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """A fully sampled scan (a) and one that the scanner undersampled (b), of two slices each."""
    folder = tmp_path_factory.mktemp("archive")
    for name, pattern in (("a", None), ("b", MaskPattern("random", 2))):
        volume = phantom_volume(2, SIZE, seed=ord(name))
        write_scan(simulate_scan(volume, coils=2, pattern=pattern, name=name), folder / f"{name}.h5")
    return folder


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "cache", 1e9)


@pytest.fixture
def opened(monkeypatch):
    """Names of the files that h5py opens."""
    names, plain = [], h5py.File

    class Recorded(plain):
        def __init__(self, name, *arguments, **settings):
            names.append(os.path.basename(name))
            super().__init__(name, *arguments, **settings)

    monkeypatch.setattr(h5py, "File", Recorded)
    return names


def arrays(data):
    return {(r.name, kind): data.array(r, kind).copy() for r in data.records for kind in KINDS}


class TestFinding:
    def test_looks_at_names_only(self, tmp_path, opened):
        for name in ("a.h5", "b.nii", "b.txt", "below/c.nii.gz", "below/d.cfl", "below/d.hdr", ".hidden.npy"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).touch()
        for number in range(3):
            (tmp_path / "series").mkdir(exist_ok=True)
            (tmp_path / "series" / f"{number}.dcm").touch()
        (tmp_path / "folder.h5").mkdir()
        found = [str(path.relative_to(tmp_path)) for path in find_sources([tmp_path])]
        assert found == [".hidden.npy", "a.h5", "b.nii", "below/c.nii.gz", "below/d.cfl", "series"]
        assert opened == []

    def test_takes_patterns_and_names_a_source_once(self, tmp_path, monkeypatch):
        (tmp_path / "x").mkdir()
        (tmp_path / "x" / "a.h5").touch()
        words = [tmp_path / "*", tmp_path / "x", str(tmp_path / "x" / "*.h5")]
        assert find_sources(words) == [tmp_path / "x" / "a.h5"]
        monkeypatch.chdir(tmp_path)
        assert [str(path) for path in find_sources(["x/*"])] == ["x/a.h5"]
        with pytest.raises(InputError, match="Nothing found"):
            find_sources(["y/*"])


class TestOpening:
    def test_examines_with_one_opening(self, archive, opened):
        for path in find_sources([archive]):
            load_scan(path)
        assert opened == ["a.h5", "b.h5"]

    def test_a_check_of_all_files_opens_each_once(self, archive, tmp_path, opened, monkeypatch):
        for name in "cd":
            shutil.copy(archive / "a.h5", tmp_path / f"{name}.h5")
        monkeypatch.setattr(preparation, "calibrate", refuse)
        config = TrainConfig(method="supervised", accel=2, preset="tiny")
        with pytest.raises(RuntimeError, match="calibration"):
            training_data.begin([tmp_path], [], config, tmp_path / "run", Silent())
        assert opened == ["c.h5", "d.h5"]

    @pytest.mark.parametrize("method", ["ambient", "supervised"])
    def test_a_run_examines_every_file_once_and_continues_without_any(self, archive, tmp_path, monkeypatch, method):
        examined = []
        for module in (preparation, training_data):
            monkeypatch.setattr(module, "load_scan", lambda path: examined.append(path.name) or load_scan(path))
        monkeypatch.setattr(training_data, "first_reconstruction", zero_filled)
        shutil.copy(archive / "a.h5", tmp_path / "c.h5")
        config = TrainConfig(method=method, accel=2, preset="tiny")
        for _ in range(2):
            training_data.begin([archive / "a.h5", tmp_path / "c.h5"], [], config, tmp_path / "run", Silent())
        assert examined == ["a.h5", "c.h5"]

    def test_a_run_that_finds_all_in_the_cache_opens_none(self, archive, tmp_path, cache, opened):
        prepare(find_sources([archive]), tmp_path / "first", cache=cache, **SETTINGS)
        opened.clear()
        prepare(find_sources([archive]), tmp_path / "second", cache=cache, **SETTINGS)
        assert opened == []


def refuse(*arguments, **settings):
    raise RuntimeError("calibration")


class TestSharing:
    def test_arrays_and_records_are_those_of_a_preparation(self, archive, tmp_path, cache, monkeypatch):
        sources = find_sources([archive])
        alone = prepare(sources, tmp_path / "alone", **SETTINGS)
        first = prepare(sources, tmp_path / "first", cache=cache, **SETTINGS)
        monkeypatch.setattr(preparation, "calibrate", refuse)
        second = prepare(sources, tmp_path / "second", cache=cache, **SETTINGS)
        assert cache.hits == 2
        assert alone.records == first.records == second.records
        for name, array in arrays(alone).items():
            np.testing.assert_array_equal(arrays(first)[name], array)
            np.testing.assert_array_equal(arrays(second)[name], array)

    def test_runs_that_start_together_prepare_each_scan_once(self, archive, tmp_path):
        pytest.importorskip("fcntl", reason="this system cannot lock files")
        for name in "cdef":
            shutil.copy(archive / "a.h5", tmp_path / f"{name}.h5")
        runs = [
            subprocess.Popen(
                [sys.executable, "-c", PREPARE, tmp_path, run], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            for run in ("first", "second")
        ]
        assert [run.stdout.readline() for run in runs] == ["ready\n"] * 2
        for run in runs:
            run.stdin.write("go\n")
            run.stdin.flush()
        assert sum(int(run.communicate()[0]) for run in runs) == 4

    def test_what_a_run_replaces_stays_in_the_cache_as_it_was(self, archive, tmp_path, cache):
        first = prepare([archive / "a.h5"], tmp_path / "first", cache=cache, **SETTINGS)
        record, before = first.records[0], first.array(first.records[0], "image").copy()
        save_array(first.folder / f"{record.name}_image.npy", torch.zeros(SIZE, dtype=torch.complex64))
        second = prepare([archive / "a.h5"], tmp_path / "second", cache=cache, **SETTINGS)
        save_array(second.folder / f"{record.name}_image.npy", torch.ones(SIZE, dtype=torch.complex64))
        third = prepare([archive / "a.h5"], tmp_path / "third", cache=cache, **SETTINGS)
        assert cache.hits == 2
        assert not first.array(record, "image").any()
        np.testing.assert_array_equal(third.array(record, "image"), before)

    @pytest.mark.parametrize(
        ("change", "acquired", "drawn"),
        [
            ({}, True, True),
            ({"mask": "equispaced"}, True, False),
            ({"accel": (3,)}, True, False),
            ({"seed": 1}, True, False),
            ({"simulation": Simulation(3)}, True, False),
            ({"noise_std": 0.5}, False, False),
            ({"reconstruct": first_reconstruction}, False, False),
        ],
        ids=str,
    )
    def test_depends_on_what_decides_the_arrays(self, archive, tmp_path, cache, monkeypatch, change, acquired, drawn):
        for name, expected in (("a", drawn), ("b", acquired)):
            prepare([archive / f"{name}.h5"], tmp_path / f"{name}1", cache=cache, **SETTINGS)
            before = cache.hits
            with monkeypatch.context() as patch:
                patch.setattr(preparation, "calibrate", refuse)
                if expected:
                    prepare([archive / f"{name}.h5"], tmp_path / f"{name}2", cache=cache, **{**SETTINGS, **change})
                else:
                    with pytest.raises(RuntimeError, match="calibration"):
                        prepare([archive / f"{name}.h5"], tmp_path / f"{name}2", cache=cache, **{**SETTINGS, **change})
            assert cache.hits - before == expected

    def test_a_mask_that_is_drawn_depends_on_the_number_of_the_source(self, archive, tmp_path, cache):
        a, b, settings = archive / "a.h5", archive / "b.h5", {**SETTINGS, "accel": (2,)}
        prepare([a, b], tmp_path / "first", cache=cache, **settings)
        turned = prepare([b, a], tmp_path / "second", cache=cache, **settings)
        assert cache.hits == 1  # b, which the scanner undersampled
        alone = prepare([b, a], tmp_path / "third", **settings)
        assert turned.records == alone.records
        assert [r.name for r in turned.records] == ["00000_0000", "00000_0001", "00001_0000", "00001_0001"]
        for name, array in arrays(alone).items():
            np.testing.assert_array_equal(arrays(turned)[name], array)

    def test_a_changed_or_renamed_file_is_another_source(self, archive, tmp_path, cache):
        path = shutil.copy(archive / "b.h5", tmp_path / "b.h5")
        for change in ("", "content", "name"):
            if change == "content":
                with h5py.File(path, "a") as file:
                    file["kspace"][0] *= 2
            elif change == "name":
                path = shutil.move(path, tmp_path / "patient.h5")
            prepare([path], tmp_path / f"run{change}", cache=cache, **SETTINGS)
        assert cache.hits == 0

    def test_both_files_of_a_pair_count(self, tmp_path):
        write_cfl(tmp_path / "scan", bart_array(fft2c(coil_images(1, 2, 16, 15))))
        keys = set()
        for name in ("scan.cfl", "scan.hdr", "scan.cfl"):
            keys.add(str(preparation._identity(tmp_path / "scan.cfl")[0]))
            os.utime(tmp_path / name, (len(keys), len(keys)))
        assert len(keys) == 3

    def test_volumes_and_phantoms_are_shared_too(self, tmp_path, cache):
        volumes = [phantom_volume(1, SIZE, seed=seed) for seed in (0, 1)]
        for folder in ("first", "second"):
            data = prepare(volumes, tmp_path / folder, cache=cache, **SETTINGS)
        assert cache.hits == 2
        other = [volumes[0], replace(volumes[1], magnitude=volumes[1].magnitude * 2)]
        prepare(other, tmp_path / "third", cache=cache, **SETTINGS)
        assert cache.hits == 3
        prepare(volumes, tmp_path / "fourth", cache=cache, **{**SETTINGS, "simulation": Simulation(2, 0.1)})
        assert cache.hits == 3
        assert len(data) == 2

    def test_a_run_says_what_it_did_not_prepare(self, archive, tmp_path, monkeypatch):
        monkeypatch.setenv("MRI_AMBIENT_CACHE_GB", "1")
        monkeypatch.setenv("MRI_AMBIENT_CACHE", str(tmp_path / "shared"))
        monkeypatch.setattr(training_data, "first_reconstruction", zero_filled)
        said = []
        reporter = type("Listener", (Silent,), {"say": lambda self, text: said.append(text)})()
        config = TrainConfig(accel=2, preset="tiny")
        for folder in ("first", "second"):
            training_data.begin([archive], [], config, tmp_path / folder, reporter)
        assert sum("2 of 2 scans were prepared by an earlier run" in text for text in said) == 1


def test_the_version_is_raised_when_the_arrays_change(tmp_path):
    """If this fails and the change is meant: raise `preparation.VERSION`, then correct the figures here."""
    settings = {**SETTINGS, "reconstruct": first_reconstruction}
    data = prepare([phantom_volume(1, SIZE, seed=0)], tmp_path, **settings)
    (record,) = data.records
    found = {"noise": record.noise_std}
    for kind in KINDS:
        values = np.abs(data.array(record, kind).astype(np.complex128)).ravel()
        found[kind] = float(values @ np.linspace(0, 1, values.size))
    assert preparation.VERSION == 1
    assert found == pytest.approx(FIGURES, rel=1e-3)


FIGURES = {"noise": 0.0153632, "kspace": 171.932, "maps": 1105.75, "mask": 9.0, "image": 241.683}


class TestServing:
    def test_a_batch_does_not_go_through_all_records(self, archive, tmp_path):
        data = prepare(find_sources([archive]), tmp_path, **SETTINGS)
        walks = []

        class Counted(list):
            def __iter__(self):
                walks.append(1)
                return super().__iter__()

        data.records = Counted(data.records)
        for number in range(3):
            data.batch(2, 16, torch.Generator().manual_seed(number))
            data.patches(2, 16, torch.Generator().manual_seed(number))
            if number == 0:
                walks.clear()
        assert walks == []

    def test_frequencies_of_many_masks_need_one_at_a_time(self, tmp_path, monkeypatch):
        data = prepare([phantom_volume(1, SIZE, seed=0)], tmp_path, **SETTINGS)
        (record,) = data.records
        masks = torch.rand(20, 1, SIZE[1], generator=torch.Generator().manual_seed(0)) < 0.3
        records = [replace(record, name=str(number), retrospective=False) for number in range(20)]
        for number, mask in enumerate(masks):
            save_array(tmp_path / f"{number}_mask.npy", mask)
        held = PreparedSlices(tmp_path, records)
        torch.testing.assert_close(held.probability(records[0]), masks.float().mean(0))
