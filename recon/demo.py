"""The demonstration: a phantom is scanned, reconstructed and compared with the truth, through files as in real life."""

from pathlib import Path
from typing import Any

from mri_ambient.metrics import psnr
from mri_ambient.operators import MaskPattern
from mri_ambient.phantoms import phantom_volume
from mri_ambient.prior import DEFAULT_PRIOR, Prior
from mri_ambient.recon.figures import panel
from mri_ambient.recon.files import FileSettings, reconstruct_files
from mri_ambient.recon.pipeline import reconstruct
from mri_ambient.recon.places import check_folder
from mri_ambient.recon.result import load_reconstruction
from mri_ambient.recon.settings import Settings
from mri_ambient.reporter import Reporter, Silent
from mri_ambient.scan import write_scan
from mri_ambient.simulate import simulate_scan

SEED = 999  # a head that the built-in training population (numbers 1000 n to 1000 n + 39) never draws
ACCEL = 4.0


def run_demo(
    out: str | Path,
    *,
    prior: Prior | str = DEFAULT_PRIOR,
    matrix: int = 160,
    settings: Settings | None = None,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Simulate two slices with 8 coils at R = 4, reconstruct them, and write k-space, result, figure and report.

    Parameters
    ----------
    out : path
        Folder for ``scan.h5``, ``scan_recon.h5``, ``scan_recon.html`` and ``panel.png``.
    prior : Prior or str
    matrix : int
        Rows and columns of a slice.
    settings : Settings, optional
        Default: 8 posterior samples of 25 steps, which are kept.
    reporter : Reporter, optional

    Returns
    -------
    dict
        ``psnr_zero_filled`` and ``psnr`` in dB, ``files``.

    Raises
    ------
    InputError
        If the prior cannot be loaded or the folder not be written.
    """
    reporter, out = reporter or Silent(), Path(out)
    check_folder(out)
    volume = phantom_volume(2, (matrix, matrix), SEED)
    scan = simulate_scan(volume, coils=8, pattern=MaskPattern("random", ACCEL), seed=SEED, name="scan")
    path, picture = out / "scan.h5", out / "panel.png"
    write_scan(scan, path)
    (summary,) = reconstruct_files(
        [path],
        out,
        prior=prior,
        settings=settings or Settings(keep_samples=True),
        files=FileSettings(report=True),
        reporter=reporter,
    )
    result = load_reconstruction(out / "scan_recon.h5")
    zero_filled = reconstruct(scan, method="zero-filled").magnitude
    target = scan.target
    std = None if result.std is None else {"reconstruction": result.std[0]}
    assert target is not None
    panel({"zero-filled": zero_filled[0], "reconstruction": result.mean[0]}, picture, reference=target[0], std=std)
    scores = {"psnr_zero_filled": psnr(target, zero_filled), "psnr": psnr(target, result.magnitude)}
    files = [str(path), *summary["files"], str(picture)]
    reporter.say(f"PSNR: zero-filled {scores['psnr_zero_filled']:.1f} dB, reconstruction {scores['psnr']:.1f} dB")
    reporter.say(f"Look at {summary['files'][-1]} and {picture}.")
    return {**scores, "files": files}
