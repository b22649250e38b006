"""The cache that runs share: keys that tell content apart, entries that are whole or absent, a bounded size."""

import json
import os
import select
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from mri_ambient import cache as cache_module
from mri_ambient.cache import ABANDONED, MANIFEST, Cache, default_cache, fingerprint, key_of
from mri_ambient.errors import InputError


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "cache", 1e6)


def some_files(folder, size=100, text="a"):
    """Two files of a run."""
    folder.mkdir(exist_ok=True)
    files = {f"{name}.npy": folder / f"00007_{name}.npy" for name in "xy"}
    for path in files.values():
        path.unlink(missing_ok=True)
        path.write_text(text * size)
    return files


def entries(cache):
    """Names of entries, and of anything that is not one."""
    return sorted(path.name for path in cache.folder.iterdir())


class TestEntries:
    def test_come_back_as_links_with_their_note(self, cache, tmp_path):
        files = some_files(tmp_path / "first")
        cache.store("key", files, {"records": [1, 2]})
        (tmp_path / "second").mkdir()
        assert cache.fetch("key", tmp_path / "second", "00001_") == {"records": [1, 2]}
        assert sorted(os.listdir(tmp_path / "second")) == ["00001_x.npy", "00001_y.npy"]
        assert (tmp_path / "second" / "00001_x.npy").samefile(files["x.npy"])
        assert cache.hits == 1

    def test_are_copied_where_links_are_impossible(self, cache, tmp_path, monkeypatch):
        def refuse(source, target):
            raise OSError(18, "Invalid cross-device link")

        monkeypatch.setattr(os, "link", refuse)
        files = some_files(tmp_path / "first")
        cache.store("key", files, None)
        (tmp_path / "second").mkdir()
        cache.fetch("key", tmp_path / "second", "")
        copy = tmp_path / "second" / "x.npy"
        assert copy.read_bytes() == files["x.npy"].read_bytes()
        assert not copy.samefile(files["x.npy"])

    def test_are_absent_without_a_trace(self, cache, tmp_path):
        assert cache.fetch("key", tmp_path, "") is None
        assert list(tmp_path.iterdir()) == []
        assert cache.hits == 0

    def test_replace_what_a_killed_run_left(self, cache, tmp_path):
        cache.store("key", some_files(tmp_path / "first"), [])
        some_files(tmp_path / "second", 3, "half")
        assert cache.fetch("key", tmp_path / "second", "00007_") == []
        assert (tmp_path / "second" / "00007_x.npy").samefile(cache.folder / "key" / "x.npy")
        assert cache.fetch("key", tmp_path / "second", "00007_") == []

    def test_cannot_be_written_through_a_link(self, cache, tmp_path):
        files = some_files(tmp_path / "first")
        cache.store("key", files, None)
        assert files["x.npy"].stat().st_mode & 0o222 == 0

    def test_stay_the_first_ones(self, cache, tmp_path):
        cache.store("key", some_files(tmp_path / "first"), "first")
        cache.store("key", some_files(tmp_path / "second", text="b"), "second")
        (tmp_path / "third").mkdir()
        assert cache.fetch("key", tmp_path / "third", "") == "first"
        assert entries(cache) == ["key"]

    def test_are_seen_by_this_user_only(self, cache, tmp_path):
        cache.store("key", some_files(tmp_path / "first"), None)
        assert cache.folder.stat().st_mode & 0o077 == 0

    @pytest.mark.parametrize("damage", ["shorter", "missing", "manifest", "not a manifest"])
    def test_are_removed_when_damaged(self, cache, tmp_path, damage):
        cache.store("key", some_files(tmp_path / "first"), None)
        entry = cache.folder / "key"
        if damage == "missing":
            (entry / "x.npy").unlink()
        elif damage == "shorter":
            (entry / "x.npy").chmod(0o644)
            os.truncate(entry / "x.npy", 50)
        else:
            (entry / MANIFEST).write_text("{" if damage == "manifest" else "[3]")
        (tmp_path / "second").mkdir()
        assert cache.fetch("key", tmp_path / "second", "") is None
        assert not entry.exists()
        cache.store("key", some_files(tmp_path / "third"), "again")
        assert cache.fetch("key", tmp_path / "second", "") == "again"

    def test_are_in_sight_only_when_whole(self, cache, tmp_path, monkeypatch):
        seen = []

        def flush(path):
            seen.append([name for name in entries(cache) if not name.startswith(".")])
            if path.name == MANIFEST:
                raise KeyboardInterrupt

        monkeypatch.setattr(cache_module, "_flush", flush)
        with pytest.raises(KeyboardInterrupt):
            cache.store("key", some_files(tmp_path / "first"), None)
        assert seen == [[]] * 3
        assert entries(cache) == []

    def test_survive_a_run_that_cannot_take_them(self, cache, tmp_path):
        cache.store("key", some_files(tmp_path / "first"), "kept")
        assert cache.fetch("key", tmp_path / "absent", "") is None
        (tmp_path / "present").mkdir()
        assert cache.fetch("key", tmp_path / "present", "") == "kept"

    def test_that_cannot_be_stored_stop_nothing(self, tmp_path):
        (tmp_path / "file").touch()
        Cache(tmp_path / "file" / "cache", 1e6).store("key", some_files(tmp_path / "first"), None)


class TestLimit:
    def test_removes_what_was_not_used_for_longest(self, tmp_path):
        cache = Cache(tmp_path / "cache", 700)
        (tmp_path / "run").mkdir()
        for age, key in enumerate("abc"):
            cache.store(key, some_files(tmp_path / "first"), key)
            moment = time.time() - 100 + age
            os.utime(cache.folder / key / MANIFEST, (moment, moment))
        assert cache.fetch("a", tmp_path / "run", "") == "a"
        cache.store("d", some_files(tmp_path / "first"), None)
        assert entries(cache) == ["a", "c", "d"]

    def test_takes_nothing_from_a_run(self, tmp_path):
        cache = Cache(tmp_path / "cache", 250)
        files = some_files(tmp_path / "first")
        cache.store("a", files, None)
        cache.store("b", some_files(tmp_path / "second"), None)
        assert entries(cache) == ["b"]
        assert files["x.npy"].read_text() == "a" * 100

    def test_holds_for_what_earlier_processes_left(self, tmp_path):
        Cache(tmp_path / "cache", 1e6).store("a", some_files(tmp_path / "first", 4950), None)
        Cache(tmp_path / "cache", 10_000).store("b", some_files(tmp_path / "first", 100), None)
        assert entries(Cache(tmp_path / "cache", 1)) == ["b"]

    def test_refuses_a_single_entry_beyond_it(self, tmp_path):
        cache = Cache(tmp_path / "cache", 1000)
        cache.store("a", some_files(tmp_path / "first"), None)
        cache.store("b", some_files(tmp_path / "first", 600), None)
        assert entries(cache) == ["a"]

    def test_clears_what_killed_processes_left(self, cache, tmp_path):
        for name, age in (("old", 2 * ABANDONED), ("new", 0.0)):
            folder = cache.folder / f".{name}"
            folder.mkdir(parents=True)
            moment = time.time() - age
            os.utime(folder, (moment, moment))
        cache.trim()
        assert entries(cache) == [".new"]


KEEP_STORING = """
import sys
from pathlib import Path
from mri_ambient.cache import Cache

folder = Path(sys.argv[1])
cache, run = Cache(folder / "cache", 2000), folder / sys.argv[2]
run.mkdir()
for number in range(10**9):
    key = f"k{number % 12}"
    cache.fetch(key, run, "")
    files = {f"{name}.npy": run / f"own_{name}.npy" for name in "xy"}
    for path in files.values():
        path.unlink(missing_ok=True)
        path.write_text(str(number % 12 % 10) * 100)
    cache.store(key, files, number % 12)
    if number == 20:
        print("ready", flush=True)
"""


def check_entries(folder):
    """Every entry that is in sight is whole, and holds what its key says."""
    cache, seen = Cache(folder / "cache", 2000), 0
    target = folder / "checked"
    target.mkdir(exist_ok=True)
    for number in range(12):
        note = cache.fetch(f"k{number}", target, "")
        if note is not None:
            seen += 1
            assert note == number
            assert all((target / f"{name}.npy").read_text() == str(number % 10) * 100 for name in "xy")
    return seen


def look(folder):
    """Files of all entries that were in sight during all of the look."""
    seen = []
    for entry in (folder / "cache").glob("k*"):
        with suppress(FileNotFoundError):  # removed by now
            before = entry.stat().st_ino
            files = {path.name for path in entry.iterdir()}
            if entry.stat().st_ino == before:
                seen.append(files)
    return seen


def test_processes_that_share_it_and_are_killed_leave_whole_entries(tmp_path):
    workers = [
        subprocess.Popen([sys.executable, "-c", KEEP_STORING, tmp_path, f"run{i}"], stdout=subprocess.PIPE)
        for i in range(2)
    ]
    try:
        assert all(worker.stdout.readline() == b"ready\n" for worker in workers)
        assert sum(check_entries(tmp_path) for _ in range(10)) > 0
        seen = [files for _ in range(500) for files in look(tmp_path)]
        assert len(seen) > 100
        assert all(files == {"x.npy", "y.npy", MANIFEST} for files in seen)
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()
    assert check_entries(tmp_path) > 0
    cache = Cache(tmp_path / "cache", 2000)
    whole = [name for name in entries(cache) if not name.startswith(".")]
    sizes = [json.loads((cache.folder / name / MANIFEST).read_text())["files"] for name in whole]
    assert sum(sum(files.values()) for files in sizes) <= 2000 * 1.1 + 200 * len(workers)


TAKE_TURN = """
import sys
from pathlib import Path
from mri_ambient.cache import Cache

print("asks", flush=True)
with Cache(Path(sys.argv[1]), 1e9).turn(sys.argv[2]):
    print("inside", flush=True)
    sys.stdin.read()
"""


class TestTurns:
    @pytest.fixture
    def process(self, tmp_path):
        """Starts a process that asks for its turn with a key."""
        started = []

        def start(key):
            command = [sys.executable, "-c", TAKE_TURN, tmp_path / "cache", key]
            started.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
            assert started[-1].stdout.readline() == b"asks\n"
            return started[-1]

        yield start
        for one in started:
            one.kill()
            one.communicate()

    def test_a_second_process_waits_until_the_first_is_gone(self, process):
        pytest.importorskip("fcntl", reason="this system cannot lock files")
        first = process(key_of("a"))
        assert first.stdout.readline() == b"inside\n"
        second = process(key_of("a"))
        assert not select.select([second.stdout], [], [], 0.5)[0]
        first.kill()
        assert second.stdout.readline() == b"inside\n"

    def test_other_keys_do_not_wait(self, process):
        for name in "ab":
            assert process(key_of(name)).stdout.readline() == b"inside\n"

    def test_there_is_no_waiting_where_nothing_can_be_locked(self, tmp_path):
        (tmp_path / "file").touch()
        with Cache(tmp_path / "file" / "cache", 1e9).turn(key_of("a")):
            pass


class TestFingerprint:
    @pytest.fixture
    def path(self, tmp_path):
        path = tmp_path / "scan.h5"
        path.write_bytes(bytes(range(256)) * 4096)
        os.utime(path, (1, 1))
        return path

    def test_is_that_of_a_copy_elsewhere(self, path, tmp_path):
        before = fingerprint([path])
        moved = path.rename(tmp_path / "moved.h5")
        assert fingerprint([moved]) == before

    @pytest.mark.parametrize("place", [0, 300_000, 2**20 - 1])
    def test_notices_other_bytes_although_size_and_time_are_the_same(self, path, place):
        before = fingerprint([path])
        content = bytearray(path.read_bytes())
        block = slice(place // 2**16 * 2**16, (place // 2**16 + 3) * 2**16)
        content[block] = bytes(len(content[block]))
        path.write_bytes(content)
        os.utime(path, (1, 1))
        assert fingerprint([path]) != before

    def test_notices_a_change_anywhere_by_its_time(self, path):
        before = fingerprint([path])
        os.utime(path, (2, 2))
        assert fingerprint([path]) != before

    def test_notices_a_missing_end(self, path):
        before = fingerprint([path])
        os.truncate(path, 2**20 - 1)
        os.utime(path, (1, 1))
        assert fingerprint([path]) != before

    def test_tells_the_order_and_number_of_files(self, path, tmp_path):
        other = tmp_path / "other"
        other.write_bytes(b"x")
        assert len({fingerprint(files) for files in ([path], [path, other], [other, path], [other])}) == 4

    def test_reads_half_a_megabyte_at_most(self, tmp_path, monkeypatch):
        path = tmp_path / "large"
        with path.open("wb") as file:
            file.truncate(10**10)
        real, read = Path.open, []

        class Counting:
            def __init__(self, file):
                self.file = file

            def __enter__(self):
                return self

            def __exit__(self, *error):
                self.file.close()

            def __getattr__(self, name):
                return getattr(self.file, name)

            def read(self, size):
                read.append(size)
                return self.file.read(size)

        monkeypatch.setattr(Path, "open", lambda self, mode: Counting(real(self, mode)))
        fingerprint([path])
        assert sum(read) == 2**19


class TestEnvironment:
    def test_names_folder_and_limit(self, monkeypatch, tmp_path):
        monkeypatch.setenv("MRI_AMBIENT_CACHE_GB", "0.5")
        monkeypatch.setenv("MRI_AMBIENT_CACHE", str(tmp_path / "here"))
        cache = default_cache()
        assert (cache.folder, cache.limit) == (tmp_path / "here" / "prepared", 5e8)

    def test_falls_back_to_the_users_cache(self, monkeypatch, tmp_path):
        monkeypatch.delenv("MRI_AMBIENT_CACHE", raising=False)
        monkeypatch.delenv("MRI_AMBIENT_CACHE_GB")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        assert default_cache().folder == tmp_path / "mri-ambient" / "prepared"
        assert default_cache().limit == 2e10
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setenv("HOME", str(tmp_path))
        assert default_cache().folder == tmp_path / ".cache" / "mri-ambient" / "prepared"

    def test_switches_it_off_in_tests(self):
        assert default_cache() is None

    @pytest.mark.parametrize("text", ["much", "-1", "nan", "inf"])
    def test_says_what_it_does_not_understand(self, monkeypatch, text):
        monkeypatch.setenv("MRI_AMBIENT_CACHE_GB", text)
        with pytest.raises(InputError, match="gigabytes"):
            default_cache()


def test_keys_differ_with_every_part_and_are_names_of_files():
    keys = [key_of("a", 1), key_of("a", 1.5), key_of("a", "1"), key_of(["a", 1]), key_of("a", None)]
    assert len(set(keys)) == len(keys)
    assert all(key.isalnum() for key in keys)


def test_needs_no_torch():
    code = "import sys, mri_ambient.cache; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
