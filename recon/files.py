"""Files in, files out: the reconstruction of scans on disk, slice by slice.

`reconstruct_file` does one scan, `reconstruct_files` many with one prior. Whatever can be known to fail is checked
before time is spent: settings, places and free space, then the scan itself. Slices are read, reconstructed and written
one after the other, so that memory does not depend on their number. The HDF5 file is always written; other formats are
made from it.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mri_ambient.allocator import keep_freed_memory
from mri_ambient.calibration import CALIBRATION_SLICES
from mri_ambient.errors import InputError
from mri_ambient.inspection import MASK_SOURCES
from mri_ambient.prior import DEFAULT_PRIOR, Prior
from mri_ambient.readers import RESULT, examine
from mri_ambient.recon.consistency import Check
from mri_ambient.recon.dicom import NO_SOURCE_OF_IDENTITY, write_dicom
from mri_ambient.recon.dicom_template import Template
from mri_ambient.recon.export import write_cfl, write_nifti, write_png
from mri_ambient.recon.meter import Meter, counted, duration
from mri_ambient.recon.parametric_map import WITHOUT, has_parametric_maps
from mri_ambient.recon.pipeline import Reconstructor, SliceResult, open_prior, undersample
from mri_ambient.recon.places import check_folder, find_scans, output_folders, result_stem
from mri_ambient.recon.report import ReportWriter
from mri_ambient.recon.result import ReconstructionWriter, image_geometry, load_reconstruction
from mri_ambient.recon.settings import LEARNED, SAMPLED, Settings
from mri_ambient.reporter import Reporter, Silent
from mri_ambient.run_state import choose_device
from mri_ambient.scan import Scan, scan_of

_WRITERS: dict[str, tuple[str, Callable[..., list[Path]]]] = {  # ending, and what returns the paths that it wrote
    "nifti": (".nii.gz", write_nifti),
    "dicom": ("_dicom", write_dicom),
    "cfl": (".cfl", write_cfl),
    "png": (".png", write_png),
}
FORMATS = ("h5", *_WRITERS)


@dataclass(frozen=True)
class FileSettings:
    """What to do with a scan file, beyond how to reconstruct.

    Attributes
    ----------
    accel : float or None
        Undersample a fully sampled scan retrospectively.
    mask : str
        Pattern of that undersampling.
    noise_std : float or None
        Noise per real component in the unit of k-space; None: from the file, or estimated.
    formats : tuple of str
        Of `FORMATS`; "h5" is written in any case.
    report : bool
        Write an HTML report, which compares with the zero-filled images.
    template : Template or None
        DICOM series of the same slices, whose geometry the format "dicom" takes over.
    keep_identity : bool
        Take over its patient and study, too.
    """

    accel: float | None = None
    mask: str = "random"
    noise_std: float | None = None
    formats: tuple[str, ...] = ("h5",)
    report: bool = False
    template: Template | None = None
    keep_identity: bool = False

    def __post_init__(self) -> None:
        unknown = [name for name in self.formats if name not in FORMATS]
        if unknown:
            raise InputError(f"The format {unknown[0]!r} is not one of {', '.join(FORMATS)}.")
        if self.template is not None and "dicom" not in self.formats:
            raise InputError("A template is for DICOM files: add the format dicom.")
        if self.keep_identity and self.template is None:
            raise InputError(NO_SOURCE_OF_IDENTITY)


def reconstruct_files(
    scans: Sequence[str | Path],
    out: str | Path,
    *,
    prior: Prior | str = DEFAULT_PRIOR,
    settings: Settings | None = None,
    files: FileSettings | None = None,
    device: str = "auto",
    precision: str = "auto",
    reporter: Reporter | None = None,
    on_error: Callable[[Path, Exception], None] | None = None,
) -> list[dict[str, Any]]:
    """Reconstruct scan files one after the other.

    Parameters
    ----------
    scans : sequence of paths
        Files, folders (all below with an ending of `mri_ambient.readers.ENDINGS`, but not reconstructions), or glob
        patterns.
    out : path
        Folder of the results, ``<stem>_recon.h5`` and so on. If scans in different folders have the same name, these
        folders are repeated below `out`.
    prior : Prior or str
        As in `mri_ambient.reconstruct`; loaded once, and only if the method needs it.
    settings : Settings, optional
        Method, samples, steps, seed.
    files : FileSettings, optional
    device, precision : str
        As in `mri_ambient.train`.
    reporter : Reporter, optional
    on_error : callable, optional
        Told the scan and what went wrong with it; the others are still done. Without it the first error is raised.

    Returns
    -------
    list of dict
        The summaries of `reconstruct_file`, of the scans that succeeded.

    Raises
    ------
    InputError
        If settings, prior or output folder cannot be used, or (without `on_error`) a scan.
    """
    settings, files = settings or Settings(), files or FileSettings()
    out = Path(out)
    check_folder(out)
    place, number_type = choose_device(device, precision)
    keep_freed_memory()
    jobs = output_folders(find_scans(scans), out)
    loaded = open_prior(prior, place, number_type) if settings.method in LEARNED else None
    summaries = []
    for path, folder in jobs:
        try:
            summaries.append(reconstruct_file(path, folder, loaded, settings, files, place, reporter))
        except Exception as error:
            if on_error is None:
                raise
            on_error(path, error)
    return summaries


def reconstruct_file(
    path: str | Path,
    folder: str | Path,
    prior: Prior | None,
    settings: Settings,
    files: FileSettings,
    device: torch.device | None = None,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Reconstruct one scan file; memory does not depend on its number of slices.

    Parameters
    ----------
    path, folder : path
        The scan, and where the results go.
    prior : Prior or None
        On the device; None for classical methods.
    settings, files
        As in `reconstruct_files`.
    device : torch.device, optional
    reporter : Reporter, optional
        Told what is known up front, and the progress in network evaluations (classical methods: in slices).

    Returns
    -------
    dict
        ``scan``, ``files`` (what was written), the attributes of the result (method, prior, noise_std, scale, ...), and
        ``noise_source``, ``mask_source``, ``slices``, ``coils``, ``matrix``, ``recon_size``.

    Raises
    ------
    InputError
        If the scan cannot be used or the results cannot be written. Nothing is left half-written.
    """
    reporter = reporter or Silent()
    folder = Path(folder)
    stem = f"{result_stem(path)}{RESULT}"
    _check_dicom(folder, stem, files)
    scan, facts = _open(path, settings, files)
    if files.template is not None:
        files.template.fit((scan.shape[0], *scan.recon_size), image_geometry(scan)[1])
    check_folder(folder, _bytes_needed(scan, settings))
    reconstructor = Reconstructor(scan, prior, settings, files.noise_std, device)
    meter = Meter(reporter, reconstructor)
    for line in _preview(reconstructor, facts):
        reporter.say(line)
    if "dicom" in files.formats and settings.method in SAMPLED and not has_parametric_maps():
        reporter.say(f"  {WITHOUT}")
    result = folder / f"{stem}.h5"
    report = _report(scan, folder / f"{stem}.html", facts) if files.report else None
    attributes = _write(reconstructor, result, meter, report)
    written = [result, *_derive(result, folder / stem, files), *([report.path] if report else [])]
    reporter.say(f"  {', '.join(map(str, written))} in {duration(meter.seconds)}")
    return {"scan": str(path), "files": [str(name) for name in written], **attributes, **facts}


def _check_dicom(folder: Path, stem: str, files: FileSettings) -> None:
    """An earlier DICOM series is not replaced: better said before the work than after it."""
    place = folder / f"{stem}{_WRITERS['dicom'][0]}"
    if "dicom" in files.formats and place.is_dir() and any(place.iterdir()):
        raise InputError(f"The folder {place} is not empty: remove it or choose another output folder.")


def _open(path: str | Path, settings: Settings, files: FileSettings) -> tuple[Scan, dict[str, Any]]:
    """The scan as it will be reconstructed, and facts about it for the summary."""
    found = examine(path)
    acquired = scan_of(found)
    scan = undersample(acquired, files.accel, files.mask, settings.seed)
    own = scan is acquired
    mask_source = MASK_SOURCES[found.mask_source] if own else f"{files.mask}, seed {settings.seed}"
    noise_source = "estimated" if scan.noise_std is None else "from the file"
    if files.noise_std is not None:
        noise_source = "given"
    slices, coils, height, width = scan.shape
    facts = {
        "slices": slices,
        "coils": coils,
        "matrix": [height, width],
        "recon_size": list(scan.recon_size),
        "mask_source": mask_source,
        "noise_source": noise_source,
    }
    return scan, facts


def _bytes_needed(scan: Scan, settings: Settings) -> int:
    pixels = scan.recon_size[0] * scan.recon_size[1]
    images = pixels * (4 + 8 + 4 + 8 * settings.samples * settings.keep_samples)
    maps = 8 * scan.shape[1] * scan.shape[2] * scan.shape[3] * settings.keep_maps
    return scan.shape[0] * (images + maps)


def _preview(reconstructor: Reconstructor, facts: dict[str, Any]) -> Iterator[str]:
    """What a user should see before the work: what was understood, and how much there is to do."""
    scan, settings, calibration = reconstructor.scan, reconstructor.settings, reconstructor.calibration
    height, width = facts["matrix"]
    yield (
        f"{scan.path or scan.name}: {counted(facts['slices'], 'slice')}, {counted(facts['coils'], 'coil')}, "
        f"{height} x {width}, R = {scan.acceleration:.3g} (mask: {facts['mask_source']})"
    )
    relative = calibration.noise_std / calibration.scale
    yield (
        f"  noise {calibration.noise_std:.4g} ({facts['noise_source']}; {relative:.2%} of the scale), "
        f"scale {calibration.scale:.4g}"
    )
    if settings.method in SAMPLED and reconstructor.prior is not None:
        check = reconstructor.evaluations_of_check
        total = check + facts["slices"] * reconstructor.evaluations_per_slice
        share = f", {check} of them to calibrate the error bars" if check else ""
        yield (
            f"  prior {reconstructor.prior.name}, {counted(settings.samples, 'sample')} x "
            f"{counted(settings.steps, 'step')}: {counted(total, 'network evaluation')}{share}"
        )
    elif reconstructor.prior is not None:
        yield f"  prior {reconstructor.prior.name}, method {settings.method}"
    else:
        yield f"  method {settings.method}"


def _report(scan: Scan, path: Path, facts: dict[str, Any]) -> ReportWriter:
    voxel, affine = image_geometry(scan)
    report = ReportWriter(path, scan.shape[0], name=scan.name, voxel_size=voxel, affine=affine)
    report.attributes |= facts
    return report


def _write(reconstructor: Reconstructor, path: Path, meter: Meter, report: ReportWriter | None) -> dict[str, Any]:
    """Reconstruct into an HDF5 file and, if there is one, a report; returns the attributes."""
    scan = reconstructor.scan
    voxel, affine = image_geometry(scan)
    if scan.shape[0] > CALIBRATION_SLICES:  # not all of them were read before: a damaged one must not come late
        for index in range(scan.shape[0]):
            scan.read(index)
    with (
        report or nullcontext(),
        ReconstructionWriter(path, scan.shape[0], name=scan.name, voxel_size=voxel, affine=affine) as writer,
        meter.watch(),
    ):
        results = []
        if reconstructor.evaluations_of_check:
            meter.reporter.say(f"  {_checked(reconstructor.check, reconstructor.settings.samples)}")
            meter.finished(0)
        for number, result in enumerate(reconstructor.slices()):
            writer.write(result.index, result.mean, result.std, result.samples, result.sensitivity_maps)
            results.append(result.without_images())
            meter.finished(number + 1)
            if report is not None:
                _add_to_report(report, result, reconstructor)
        writer.attributes.update(reconstructor.attributes(results, meter.seconds))
        attributes = dict(writer.attributes)
        if report is not None:
            report.attributes |= attributes
    if attributes["empty_slices"]:
        numbers = ", ".join(map(str, attributes["empty_slices"]))
        meter.reporter.say(f"  without signal, written as zero: slices {numbers}")
    return attributes


def _add_to_report(report: ReportWriter, result: SliceResult, reconstructor: Reconstructor) -> None:
    """The slice beside its zero-filled image; the middle one with its coil sensitivities."""
    comparison = copy.copy(reconstructor)
    comparison.settings = Settings("zero-filled", keep_maps=True)
    plain = comparison.slice(result.index)
    report.write(result.index, result.mean, result.std, result.samples, plain.mean)
    if result.index == report.slices // 2:
        report.draw_acquisition(result.index, reconstructor.scan.mask, plain.sensitivity_maps)


def _checked(check: Check, samples: int) -> str:
    """What held-out k-space says, in one line."""
    if not check.parts:
        return check.verdict
    numbers = ", ".join(map(str, check.slices))
    bars = f"error bars multiplied by {check.std_factor:.2f}" if samples > 1 else "one sample has no error bars"
    return f"{check.verdict} Seen on slices {numbers}; {bars}."


def _derive(result: Path, base: Path, files: FileSettings) -> Iterator[Path]:
    """Other formats, from the finished file."""
    names = [name for name in _WRITERS if name in files.formats]
    if not names:
        return
    reconstruction = load_reconstruction(result)
    for name in names:
        ending, write = _WRITERS[name]
        place = (files.template, files.keep_identity) if name == "dicom" else ()
        yield from write(reconstruction, base.with_name(base.name + ending), *place)
