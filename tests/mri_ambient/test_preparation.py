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
from mri_ambient.preparation import Simulation, find_sources, own_names, prepare
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

    def test_leaves_results_out_unless_they_are_named(self, tmp_path):
        scans = ["p.h5", "recon.h5", "p_recon_old.h5", "p_reconstructed.nii.gz"]
        results = ["p_recon.h5", "p_recon.nii.gz", "p_recon_std.nii.gz", "p_recon_std.cfl", "p_contrast=1_recon.h5"]
        for name in (*scans, *results, "p_recon_dicom/1.dcm", "p_recon_dicom/std/1.dcm", "series/1.dcm"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).touch()
        wanted = sorted(tmp_path / name for name in (*scans, "series"))
        assert find_sources([tmp_path]) == wanted
        assert find_sources([tmp_path / "*.h5"]) == [path for path in wanted if path.suffix == ".h5"]
        assert find_sources([tmp_path / "p_recon.h5"]) == [tmp_path / "p_recon.h5"]
        assert tmp_path / "p_recon_dicom" in find_sources([tmp_path / "p_recon_dicom"])
        assert find_sources([tmp_path / "*_recon.nii.gz"]) == [tmp_path / "p_recon.nii.gz"]


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


class TestResuming:
    @pytest.fixture
    def copies(self, archive, tmp_path):
        """An archive of two scans, b.h5 and d.h5."""
        folder = tmp_path / "archive"
        folder.mkdir()
        for name in "bd":
            shutil.copy(archive / "a.h5", folder / f"{name}.h5")
        return folder

    def begin(self, copies, tmp_path):
        return prepare(find_sources([copies]), tmp_path / "run", **SETTINGS)

    @pytest.mark.parametrize(
        ("change", "why"),
        [
            (lambda f: shutil.copy(f / "b.h5", f / "a.h5"), "number 1 was archive/b.h5, now it is archive/a.h5"),
            (lambda f: (f / "d.h5").rename(f / "c.h5"), "number 2 was archive/d.h5, now it is archive/c.h5"),
            (lambda f: (f / "d.h5").unlink(), "number 2 was archive/d.h5, now it is missing"),
            (lambda f: shutil.copy(f / "b.h5", f / "e.h5"), "they were 2, now they are 3"),
        ],
        ids=["before", "renamed", "missing", "behind"],
    )
    def test_refuses_other_scans(self, copies, tmp_path, change, why):
        self.begin(copies, tmp_path)
        before = sorted(os.listdir(tmp_path / "run"))
        change(copies)
        with pytest.raises(InputError, match=rf"begun with other scans \({why}\): choose another --out"):
            self.begin(copies, tmp_path)
        assert sorted(os.listdir(tmp_path / "run")) == before

    def test_does_not_mind_a_moved_archive(self, copies, tmp_path, monkeypatch):
        first = self.begin(copies, tmp_path)
        (tmp_path / "elsewhere").mkdir()
        moved = copies.rename(tmp_path / "elsewhere" / "archive")
        monkeypatch.setattr(preparation, "calibrate", refuse)
        monkeypatch.chdir(moved)
        assert prepare(find_sources(["*.h5"]), tmp_path / "run", **SETTINGS).records == first.records

    def test_a_scan_that_stopped_it_can_be_taken_out(self, copies, tmp_path):
        (copies / "e.h5").write_bytes(b"damaged")
        with pytest.raises(InputError):
            self.begin(copies, tmp_path)
        (copies / "e.h5").unlink()
        assert len(self.begin(copies, tmp_path)) == 4

    @pytest.mark.parametrize("text", ["[]", "{", '{"source": "archive/b.h5", "last": false, "records": [{}]}'])
    def test_says_what_it_cannot_read(self, copies, tmp_path, text):
        self.begin(copies, tmp_path)
        (tmp_path / "run" / "00000.json").write_text(text)
        with pytest.raises(InputError, match=r"00000\.json is damaged or of another version: choose another --out"):
            self.begin(copies, tmp_path)

    def test_knows_volumes_by_their_name(self, tmp_path):
        volumes = [phantom_volume(1, SIZE, seed=seed) for seed in (0, 1)]
        prepare(volumes, tmp_path / "run", **SETTINGS)
        assert len(prepare(volumes, tmp_path / "run", **SETTINGS)) == 2
        with pytest.raises(InputError, match="number 1 was phantom0, now it is phantom1"):
            prepare(volumes[::-1], tmp_path / "run", **SETTINGS)


class TestPatients:
    @pytest.fixture
    def nameless(self, tmp_path):
        """Four scans of one name, undersampled by the scanner, of patients that are not known."""
        scan = simulate_scan(phantom_volume(1, SIZE, seed=0), coils=2, pattern=MaskPattern("random", 2), name="scan")
        for number in range(4):
            write_scan(replace(scan, patient=None), tmp_path / "nameless" / f"sub{number}" / "scan.h5")
        return tmp_path / "nameless"

    def test_scans_of_one_name_are_told_apart_by_their_folders(self, nameless, tmp_path, cache, monkeypatch):
        monkeypatch.setattr(training_data, "default_cache", lambda: cache)
        monkeypatch.setattr(training_data, "first_reconstruction", zero_filled)
        config = TrainConfig(accel=2, preset="tiny")
        alone = prepare([nameless / "sub0" / "scan.h5"], tmp_path / "alone", cache=cache, **SETTINGS)
        assert [record.patient for record in alone.records] == ["scan"]
        for _ in range(2):
            training, held_out = training_data.begin([nameless], [], config, tmp_path / "run", Silent())
            assert len(held_out) == 1
            found = sorted(record.patient for record in (*training.records, *held_out.records))
            assert found == [f"sub{number}/scan" for number in range(4)]
        assert cache.hits > 0

    def test_names_are_kept_where_they_differ_or_mean_something(self, tmp_path):
        (tmp_path / "x" / "series").mkdir(parents=True)
        (tmp_path / "y" / "series").mkdir(parents=True)
        names = ["a/s.h5", "a/s.cfl", "b/s.h5", "a/t.h5", "p/u.nii.gz", "q/u.nii.gz", "x/series", "y/series"]
        sources = [*(tmp_path / name for name in names), tmp_path / "a" / "n/v.h5", tmp_path / "b" / "n/v.h5"]
        told = [distinct for _, distinct in own_names([*sources, phantom_volume(1, SIZE, seed=0)])]
        assert told == ["a/s", "a/s", "b/s", "t", "", "", "x/series", "y/series", "a/n/v", "b/n/v", ""]

    def test_a_patient_that_is_known_stays(self, archive, tmp_path):
        for name in "xy":
            (tmp_path / name).mkdir()
            shutil.copy(archive / "a.h5", tmp_path / name)
        data = prepare(find_sources([tmp_path / "*" / "a.h5"]), tmp_path / "run", **SETTINGS)
        assert {record.patient for record in data.records} == {load_scan(archive / "a.h5").patient}


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

    @pytest.fixture
    def archived(self, tmp_path):
        """Six slices of the scanner's own masks: five patients of different height, and a sixth with a mask alone."""
        data = prepare([phantom_volume(1, SIZE, seed=0)], tmp_path, **SETTINGS)
        (record,) = data.records
        masks = torch.rand(6, 1, SIZE[1], generator=torch.Generator().manual_seed(0)) < 0.5
        masks[:5, 0, 7], masks[5, 0, 7] = False, True
        records = [
            replace(record, name=f"{n}", patient=f"p{n}", shape=(2, 40 + 2 * n, SIZE[1]), retrospective=False)
            for n in range(6)
        ]
        for number, mask in enumerate(masks):
            save_array(tmp_path / f"{number}_mask.npy", mask)
        return PreparedSlices(tmp_path, records), masks

    def test_frequencies_of_lines_do_not_depend_on_the_readout(self, archived):
        data, masks = archived
        torch.testing.assert_close(data.probability(data.records[0]), masks.float().mean(0))
        square = [replace(record, line_mask=False) for record in data.records]
        alone = PreparedSlices(data.folder, square).probability(square[0])
        torch.testing.assert_close(alone, masks[0].float())

    def test_held_out_slices_have_the_frequencies_of_the_others(self, archived):
        data, masks = archived
        training, held_out = data.split({"p5"})
        expected = masks[:5].float().mean(0)
        torch.testing.assert_close(training.probability(training.records[0]), expected)
        expected = torch.where(expected > 0, expected, masks.float().mean(0))  # line 7, which training never shows
        assert float(expected[0, 7]) == pytest.approx(1 / 6)
        torch.testing.assert_close(held_out.probability(held_out.records[0]), expected)

    def test_held_out_slices_that_resemble_no_other_have_their_own(self, archived):
        data, masks = archived
        data.records[5] = replace(data.records[5], line_mask=False)
        _, held_out = data.split({"p5"})
        torch.testing.assert_close(held_out.probability(held_out.records[0]), masks[5].float())
