"""Scores of files against metrics of arrays; matching, cropping and errors; figures are read back."""

import json
from io import BytesIO
from pathlib import Path

import h5py
import numpy as np
import pytest

from mri_ambient import metrics
from mri_ambient.errors import InputError
from mri_ambient.recon.evaluation import evaluate
from mri_ambient.recon.figures import panel
from mri_ambient.recon.result import Reconstruction


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(shape).astype(np.float32)


def target(path: Path, volume: np.ndarray, *, name: str = "reconstruction_rss", patient: str | None = None) -> Path:
    path.parent.mkdir(exist_ok=True)
    with h5py.File(path, "a") as file:
        file[name] = volume
        if patient:
            file.attrs["patient_id"] = patient
    return path


@pytest.fixture
def pair(tmp_path) -> tuple[Path, Path]:
    truth = target(tmp_path / "truth" / "scan.h5", random(2, 12, 10), patient="p1")
    return Reconstruction(random(2, 12, 10, seed=1)).save(tmp_path / "scan_recon.h5"), truth


def test_rows_are_the_metrics_of_the_volumes(pair):
    (row,) = evaluate([pair[0]], [pair[1]]).rows
    truth, volume = random(2, 12, 10), random(2, 12, 10, seed=1)
    assert (row.name, row.patient, row.slices, row.cropped) == ("scan", "p1", 2, False)
    for name in ("psnr", "ssim", "nmse"):
        assert getattr(row, name) == pytest.approx(getattr(metrics, name)(truth, volume))


def test_agrees_with_the_evaluation_of_fastmri(tmp_path):
    fastmri = pytest.importorskip("fastmri.evaluate")
    for index in range(3):  # square: fastMRI crops both to the width of the target
        target(tmp_path / "truth" / f"{index}.h5", random(2, 11, 11, seed=index))
        Reconstruction(random(2, 11, 11, seed=index + 9)).save(tmp_path / "recon" / f"{index}.h5")
    arguments = type("Arguments", (), {"acquisition": None, "acceleration": None})
    arguments.target_path, arguments.predictions_path = tmp_path / "truth", tmp_path / "recon"
    result = evaluate([tmp_path / "recon"], [tmp_path / "truth"])
    assert len(result.rows) == 3
    means = fastmri.evaluate(arguments, "reconstruction_rss").means()
    for name, summary in result.summary.items():
        assert summary.mean == pytest.approx(np.asarray(means[name.upper()]).item(), rel=1e-4)


def test_intervals_go_by_patient(tmp_path):
    """Two patients of three volumes each: the ends are the means of the patients, whatever lies inside."""
    for index in range(6):
        truth = random(1, 9, 9, seed=index)
        target(tmp_path / "truth" / f"s{index}.h5", truth, patient="ab"[index // 3])
        Reconstruction(truth * (1.1 if index < 3 else 1.3)).save(tmp_path / f"s{index}_recon.h5")
    result = evaluate([tmp_path], [tmp_path / "truth"])
    summary = result.summary["nmse"]
    assert result.patients == 2
    assert (summary.low, summary.mean, summary.high) == pytest.approx((0.01, 0.05, 0.09), rel=1e-3)
    assert json.loads(json.dumps(result.as_dict()))["rows"][0]["patient"] == "a"


def test_one_patient_has_no_interval(pair):
    summary = evaluate([pair[0]], [pair[1]]).summary["ssim"]
    assert summary.low is None
    assert summary.high is None


def test_without_patients_every_volume_is_one(tmp_path):
    for index in range(2):
        target(tmp_path / "truth" / f"s{index}.h5", random(1, 9, 9, seed=index))
        Reconstruction(random(1, 9, 9, seed=5)).save(tmp_path / f"s{index}_recon.h5")
    result = evaluate(sorted(tmp_path.glob("*.h5")), [tmp_path / "truth"])
    assert [row.patient for row in result.rows] == ["s0", "s1"]
    assert result.summary["psnr"].low is not None


@pytest.mark.parametrize(("coil_axis", "expected"), [((), "reconstruction_esc"), ((1,), "reconstruction_rss")])
def test_which_target(coil_axis, expected, tmp_path):
    volumes = {"reconstruction_rss": random(1, 9, 9), "reconstruction_esc": random(1, 9, 9, seed=1)}
    for name, volume in volumes.items():
        target(tmp_path / "truth" / "x.h5", volume, name=name)
    with h5py.File(tmp_path / "truth" / "x.h5", "a") as file:
        file["kspace"] = np.zeros((1, *coil_axis, 9, 9), np.complex64)
    path = Reconstruction(volumes[expected]).save(tmp_path / "x_recon.h5")
    assert evaluate([path], [tmp_path / "truth"]).rows[0].nmse == 0


def test_the_full_field_of_view_is_cropped_to_the_target(tmp_path):
    wide = random(2, 20, 15)
    truth = target(tmp_path / "truth" / "x.h5", wide[:, 4:16, 2:13])  # 12 x 11 about index N // 2
    path = Reconstruction(wide).save(tmp_path / "x_recon.h5")
    with pytest.raises(InputError, match="same size"):
        evaluate([path], [truth])
    with h5py.File(truth, "a") as file:
        file["kspace"] = np.zeros((2, 3, 20, 15), np.complex64)
    (row,) = evaluate([path], [truth]).rows
    assert row.cropped
    assert row.nmse == 0
    Reconstruction(wide[:, 1:]).save(path)
    with pytest.raises(InputError, match="same size"):
        evaluate([path], [truth])


def test_refuses(pair, tmp_path):
    recon, truth = pair
    with pytest.raises(InputError, match="no reconstruction"):
        evaluate([], [truth])
    with pytest.raises(InputError, match=r"no target for .*scan\.h5"):
        evaluate([recon], [target(tmp_path / "other.h5", random(2, 12, 10))])
    with pytest.raises(InputError, match="2 targets"):
        evaluate([recon], [truth, target(tmp_path / "second" / "scan.h5", random(2, 12, 10))])
    with pytest.raises(InputError, match="holds no target"):
        evaluate([recon], [target(tmp_path / "third" / "scan.h5", random(2, 12, 10), name="other")])
    with pytest.raises(InputError, match="not a reconstruction"):
        evaluate([truth], [truth])
    with pytest.raises(InputError, match="same slices"):
        evaluate([recon], [target(tmp_path / "fourth" / "scan.h5", random(3, 12, 10))])
    with pytest.raises(InputError, match="positive"):
        evaluate([recon], [target(tmp_path / "fifth" / "scan.h5", np.zeros((2, 12, 10)))])
    for places in (([recon, tmp_path / "gone.h5"], [truth]), ([recon], [truth, tmp_path / "gone.h5"])):
        with pytest.raises(InputError, match=r"There is no file .*gone\.h5"):
            evaluate(*places)


def picture(source: Path | BytesIO) -> np.ndarray:
    from matplotlib.image import imread

    return imread(source)[..., :3]


def test_panel_shows_images_errors_and_spread(tmp_path):
    truth = np.ones((16, 16))
    images = {"A": truth, "B": truth * np.exp(1j) * 0.9}
    full = picture(panel(images, tmp_path / "full.png", reference=truth, std={"B": 0.1 * truth}))
    plain = picture(panel(images, tmp_path / "plain.png"))
    assert full.shape[0] > 2 * plain.shape[0]
    assert full.shape[1] > 1.3 * plain.shape[1]
    exact = picture(panel({"A": truth}, tmp_path / "exact.png", reference=truth))
    wrong = picture(panel({"A": 0.9 * truth}, tmp_path / "wrong.png", reference=truth))
    assert exact.shape == wrong.shape
    # Below the middle lies the error map, black where there is no error (inferno starts at black).
    assert (exact[-100, 3 * exact.shape[1] // 4] < 0.1).all()
    assert wrong[-100, 3 * wrong.shape[1] // 4].max() > 0.5


@pytest.mark.parametrize(
    "arguments",
    [
        {"images": {}},
        {"images": {"A": np.ones((4, 4))}, "reference": np.ones((4, 5))},
        {"images": {"A": np.ones((2, 4, 4))}},
        {"images": {"A": np.ones((4, 4))}, "std": {"B": np.ones((4, 4))}},
    ],
)
def test_panel_refuses(arguments, tmp_path):
    with pytest.raises(ValueError, match="panel"):
        panel(path=tmp_path / "x.png", **arguments)
