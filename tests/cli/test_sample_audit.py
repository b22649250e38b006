"""mri-ambient sample and audit: what they write and print, and what they refuse."""

import json

import h5py
import numpy as np
import pytest
from cli_checks import files_in, one_line

from mri_ambient.phantoms import phantom_volume
from mri_ambient.prior import load_prior
from mri_ambient.recon.audit import Audit, Recovery, Similarity
from mri_ambient.scan import write_scan
from mri_ambient.simulate import simulate_scan


class TestSample:
    @pytest.fixture
    def sample(self, run, tiny_prior, tmp_path):
        def invoke(*words, code=0):
            settings = ["--count", 2, "--matrix", 24, "--steps", 2, "--precision", "fp32", "--out", tmp_path / "out"]
            result = run("sample", tiny_prior, *settings, *words)
            assert result.exit_code == code, result.output
            return result

        return invoke

    def stored(self, folder):
        with h5py.File(folder / "out" / "samples.h5") as file:
            return file["samples"][()], dict(file.attrs)

    def test_writes_images_and_a_picture(self, sample, tiny_prior, tmp_path):
        output = sample().stdout
        assert files_in(tmp_path / "out") == ["samples.h5", "samples.png"]
        files = f"{tmp_path / 'out' / 'samples.h5'}, {tmp_path / 'out' / 'samples.png'}"
        assert output == f"{files}: 2 images of 24 x 24 from prior tiny\n"
        images, attributes = self.stored(tmp_path)
        assert (images.shape, images.dtype) == ((2, 24, 24), np.complex64)
        assert (attributes["prior"], attributes["seed"], attributes["steps"]) == ("tiny", 0, 2)
        assert attributes["prior_hash"] == load_prior(tiny_prior).hash
        assert set(json.loads(attributes["versions"])) == {"mri-ambient", "torch"}

    def test_json(self, sample, tmp_path):
        found = json.loads(sample("--json").stdout)
        assert found["files"] == [str(tmp_path / "out" / name) for name in ("samples.h5", "samples.png")]
        assert (found["prior"], found["count"], found["matrix"]) == ("tiny", 2, 24)

    def test_the_seed_alone_decides(self, sample, tmp_path):
        def images(*words):
            assert sample("--quiet", *words).output == ""
            return self.stored(tmp_path)[0]

        first = images()
        np.testing.assert_array_equal(images(), first)
        np.testing.assert_allclose(images("--count", 3)[:2], first, atol=1e-4)
        assert np.abs(images("--seed", 1) - first).max() > 0.01

    @pytest.mark.parametrize(
        ("words", "expected"),
        [(["--count", 0], "images"), (["--matrix", 1], "matrix"), (["--precision", "fp7"], "fp7")],
    )
    def test_bad_options(self, sample, tmp_path, words, expected):
        assert expected in one_line(sample(*words, code=2))
        assert files_in(tmp_path / "out") == []

    def test_bad_prior_and_bad_folder(self, run, tiny_prior, tmp_path):
        assert "no prior 'nonesuch'" in one_line(run("sample", "nonesuch", "--out", tmp_path / "out"))
        (tmp_path / "file").touch()
        result = run("sample", tiny_prior, "--out", tmp_path / "file" / "out")
        assert result.exit_code == 2
        assert str(tmp_path / "file") in one_line(result)
        assert files_in(tmp_path) == ["file"]


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """Folders with two patients in training, and two others."""
    folder = tmp_path_factory.mktemp("audit")
    for name, seeds in {"known": (1, 2), "new": (3, 4)}.items():
        (folder / name).mkdir()
        for seed in seeds:
            volume = phantom_volume(2, (40, 32), seed)
            write_scan(simulate_scan(volume, coils=2, noise_std=0.01), folder / name / f"{seed}.h5")
    return folder


class TestAudit:
    @pytest.fixture
    def audit(self, run, tiny_prior, scans):
        def invoke(*words, code=0):
            result = run("audit", tiny_prior, "--data", scans / "known", "--count", 2, "--precision", "fp32", *words)
            assert result.exit_code == code, result.output
            return result

        return invoke

    def test_text_agrees_with_json(self, audit, scans):
        text = audit("--heldout", scans / "new").stdout
        values = json.loads(audit("--heldout", scans / "new", "--json").stdout)
        assert values["prior"] == "tiny"
        assert (values["training_slices"], values["heldout_slices"], values["samples"]) == (4, 4, 2)
        assert values["matrix"] == [40, 32]
        assert "training: 4 slices of 2 patients; held out: 4 slices of 2 patients" in text
        near = values["similarity"]
        assert f"{near['samples_to_training']:.3f}" in text
        assert f"{near['heldout_to_training']:.3f}" in text
        for level in values["recovery"]:
            (line,) = [line for line in text.splitlines() if line.startswith(f"sigma {level['sigma']:g} ")]
            shown = [f"{level[key]:.3f}" for key in ("training", "heldout", "ratio", "low")]
            assert line.split()[2:6] == shown
        assert values["memorises"] is False
        assert text.splitlines()[-1] == "No sign of memorisation."
        assert all(f"Note: {note}" in text for note in values["notes"])

    def test_volumes(self, run, tiny_prior, nifti, scans):
        words = ["--data", nifti, "--heldout", scans / "new", "--count", 1, "--matrix", 32, "--json"]
        result = run("audit", tiny_prior, *words)
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout)["matrix"] == [32, 32]

    def test_a_finding_is_said(self, audit, scans, monkeypatch):
        near = Similarity(1.0, 0.9, 0.9, 2, 0.001, True)
        level = Recovery(0.5, 0.1, 0.5, 0.2, None, None)
        found = Audit("tiny", "0", 2, (40, 32), 4, 2, 4, 1, near, (level,), 0, ("Beware.",))
        monkeypatch.setattr("mri_ambient.recon.audit.audit", lambda *_, **__: found)
        lines = audit("--heldout", scans / "new").stdout.splitlines()
        assert lines[-1].startswith("The prior memorises: it draws copies of training slices, and it restores")
        assert lines[-2] == "Note: Beware."
        assert audit("--heldout", scans / "new", "--quiet").output == ""

    @pytest.mark.parametrize(
        ("words", "expected"),
        [
            ([], "--heldout"),
            (["--heldout", "nowhere/*.h5"], "nowhere"),
            (["--heldout", "KNOWN"], "both among the training data and held out"),
            (["--heldout", "NEW", "--count", 0], "images"),
            (["--heldout", "NEW", "--device", "abacus"], "abacus"),
        ],
    )
    def test_bad_options(self, audit, scans, words, expected):
        places = {"KNOWN": scans / "known" / "1.h5", "NEW": scans / "new"}
        assert expected in one_line(audit(*(places.get(word, word) for word in words), code=2))
