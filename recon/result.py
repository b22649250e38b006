r"""What a reconstruction is, and its HDF5 file.

From posterior samples :math:`x_1, \dots, x_K` of a complex image given the measurement, the estimate :math:`\bar x`
is close to their mean, the minimiser of the expected squared error (`mri_ambient.posterior.refine` takes out most of
the spread that the mean of a few samples keeps). Its error bar is the standard deviation of :math:`|x_k|`, pixel by
pixel, times one factor for the volume that held-out k-space gives (attribute ``std_factor``; `recon.consistency`).
Both are in the units of the input k-space. The magnitude that is exported is :math:`|\bar x|`, not the mean of
:math:`|x_k|`, which noise biases upwards.

==========================  ========================  =========  ==================================================
dataset                     shape                     type
==========================  ========================  =========  ==================================================
``reconstruction``          (slice, y, x)             float32    magnitude of the estimate
``reconstruction_complex``  (slice, y, x)             complex64  the estimate
``std``                     (slice, y, x)             float32    only where the method gives an error bar
``samples``                 (slice, sample, y, x)     complex64  optional
``sensitivity_maps``        (slice, coil, y, x)       complex64  optional; of the full field of view
==========================  ========================  =========  ==================================================

Everything else is an attribute of the file: ``name``, ``voxel_size`` in mm and ``affine`` along (slice, y, x), and the
settings (prior and its hash, method, steps, network_evaluations, seed, versions, noise_std, scale, seconds), and how
well the result agrees with the data: ``verdict`` in words, ``chi_square_held_out`` of the volume and, of the slices
that were checked, ``chi_square_held_out_slices``; ``chi_square_acquired`` a slice; ``empty_slices`` without signal;
``map_sets``, the sets of sensitivity maps (two lie side by side along x).
Attributes that are dictionaries or lists are stored as JSON text.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mri_ambient.errors import InputError
from mri_ambient.hdf5 import create_hdf5, open_hdf5
from mri_ambient.operators.arrays import as_complex
from mri_ambient.scan import Scan

_OWN = ("name", "voxel_size", "affine")  # file attributes that are fields, not settings


@dataclass(frozen=True, eq=False, repr=False)
class Reconstruction:
    """A reconstructed volume with its error bar. NumPy arrays are accepted and kept as CPU tensors.

    Attributes
    ----------
    mean : Tensor (slice, y, x), complex64
        Posterior mean, or the point estimate of a method without a posterior, in units of the input k-space.
    std : Tensor (slice, y, x), float32, optional
        Standard deviation of the magnitude over the posterior, in the same units; None for a point estimate. Samples
        spread by this over ``attributes["std_factor"]``.
    samples : Tensor (slice, sample, y, x), complex64, optional
        Posterior samples.
    sensitivity_maps : Tensor (slice, coil, y, x), complex64, optional
        Maps that were used; of the full field of view, so `y` and `x` may be larger than the image's.
    attributes : dict
        Settings: text, numbers, booleans, and lists or dictionaries of these; None entries are not stored.
    name : str
        Name of the scan.
    voxel_size : tuple of float, optional
        Millimetres along (slice, y, x).
    affine : ndarray (4, 4), optional
        Array indices (slice, y, x) to RAS millimetres.

    Raises
    ------
    ValueError
        If shapes do not fit each other or values are not finite.
    """

    mean: Tensor
    std: Tensor | None = None
    samples: Tensor | None = None
    sensitivity_maps: Tensor | None = None
    attributes: dict[str, Any] = field(default_factory=dict)
    name: str = "scan"
    voxel_size: tuple[float, float, float] | None = None
    affine: np.ndarray | None = None

    def __post_init__(self) -> None:
        for key in ("mean", "std", "samples", "sensitivity_maps"):
            value = getattr(self, key)
            if value is not None:
                array = torch.as_tensor(value).detach().to("cpu", torch.float32 if key == "std" else torch.complex64)
                if not torch.isfinite(array).all():
                    raise ValueError(f"{key} of {self.name} has values that are not finite")
                object.__setattr__(self, key, array.resolve_conj().contiguous())
        slices, image = self.mean.shape[:1], self.mean.shape[1:]
        fits = self.mean.ndim == 3 and self.mean.numel() > 0
        if self.std is not None:
            fits &= self.std.shape == self.mean.shape
        if self.samples is not None:
            fits &= self.samples.ndim == 4 and self.samples.shape[:1] + self.samples.shape[2:] == slices + image
        if self.sensitivity_maps is not None:
            fits &= self.sensitivity_maps.ndim == 4 and self.sensitivity_maps.shape[:1] == slices
        if not fits:
            arrays = {key: getattr(self, key) for key in ("mean", "std", "samples", "sensitivity_maps")}
            shapes = ", ".join(f"{key} {tuple(array.shape)}" for key, array in arrays.items() if array is not None)
            raise ValueError(f"these shapes do not make one reconstruction: {shapes}")
        if self.affine is not None:
            object.__setattr__(self, "affine", np.asarray(self.affine, dtype=np.float64).reshape(4, 4))

    def __repr__(self) -> str:
        slices, height, width = self.mean.shape
        samples = "" if self.samples is None else f", {self.samples.shape[1]} samples"
        return f"Reconstruction({self.name!r}, {slices} slices, {height} x {width}{samples})"

    @property
    def magnitude(self) -> Tensor:
        """Magnitude of the estimate, (slice, y, x), float32."""
        return self.mean.abs()

    def interval(self, level: float = 0.9) -> tuple[Tensor, Tensor]:
        """Credible interval of the magnitude, pixel by pixel: the estimate -+ Student's quantile times `std` and
        sqrt(1 + 1 / samples).

        Standard deviation and mean of few samples are themselves uncertain: with 8, the normal quantile alone would
        cover 83 % instead of 90 %.

        Parameters
        ----------
        level : float
            Probability that the truth is inside, where errors are Gaussian and the standard deviation is right.

        Returns
        -------
        lower, upper : Tensor (slice, y, x)

        Raises
        ------
        ValueError
            If there is no standard deviation, it is not of two or more samples, or the level is not between 0 and 1.
        """
        from scipy.stats import t as student

        samples = int(self.attributes.get("samples_drawn", 0))
        if self.std is None or samples < 2:
            raise ValueError(f"{self.name} has no standard deviation of two or more samples")
        if not 0 < level < 1:
            raise ValueError(f"the level of an interval is between 0 and 1, not {level:g}")
        half = float(student.ppf((1 + level) / 2, samples - 1)) * (1 + 1 / samples) ** 0.5 * self.std
        return (self.magnitude - half).clamp_min(0), self.magnitude + half

    def save(self, path: str | Path, *, template: str | Path | None = None, keep_identity: bool = False) -> Path:
        """Write to the format that the name asks for; what is there is replaced, except for a folder with files in it.

        Parameters
        ----------
        path : str or Path
            ``x.h5`` (everything), ``x.nii`` or ``x.nii.gz`` (magnitude, and the error bar as ``x_std.nii.gz``),
            ``x.cfl`` (complex, with ``x.hdr``, and ``x_std.cfl``), ``x.png`` (all slices as a grid), ``x.html`` (a
            report), or a name without an ending for a folder of DICOM files (`mri_ambient.recon.dicom`).
        template : str or Path, optional
            For DICOM: folder of a series of the same slices, from which geometry and sequence are copied.
        keep_identity : bool
            Copy patient and study from the template, too.

        Returns
        -------
        Path
            What was written.

        Raises
        ------
        InputError
            If the ending is not one of these, the template does not fit, or the file cannot be written. No partial
            file is left behind.
        """
        from .dicom_template import open_template
        from .export import export

        return export(self, Path(path), None if template is None else open_template(template), keep_identity)


class ReconstructionWriter:
    """Writes a reconstruction file slice by slice, so that memory does not depend on the number of slices.

    A context manager. The file is written under another name, and appears under its own when the block ends with all
    slices written; otherwise nothing is left behind and an older file stays. The first slice decides which datasets
    there are.

    Parameters
    ----------
    path : str or Path
        The ``.h5`` file; missing folders are created.
    slices : int
        How many slices there will be.
    attributes : dict, optional
        Settings. The dictionary in `attributes` may be extended until the block ends.
    name, voxel_size, affine
        As in `Reconstruction`.

    Raises
    ------
    InputError
        If the file cannot be written, on entry (before any time is spent) or later.
    ValueError
        If a slice does not fit the first one, or the block ends without all slices.

    Examples
    --------
    >>> with ReconstructionWriter("scan_recon.h5", slices=2) as writer:  # doctest: +SKIP
    ...     for index in range(2):
    ...         writer.write(index, mean[index], std[index])
    ...     writer.attributes["seconds"] = 12.5
    """

    def __init__(
        self,
        path: str | Path,
        slices: int,
        *,
        attributes: dict[str, Any] | None = None,
        name: str = "scan",
        voxel_size: tuple[float, float, float] | None = None,
        affine: np.ndarray | None = None,
    ) -> None:
        self.path = Path(path)
        self.slices = slices
        self.attributes = dict(attributes or {})
        self._own = {"name": name, "voxel_size": voxel_size, "affine": affine}
        self._written: set[int] = set()
        # Kept open: a dataset that cannot write its buffer when it is collected prints a traceback nobody can catch.
        self._datasets: dict[str, Any] = {}

    def __enter__(self) -> "ReconstructionWriter":
        self._manager = create_hdf5(self.path)
        self._file = self._manager.__enter__()
        self._open = True
        return self

    def write(
        self,
        index: int,
        mean: Any,
        std: Any = None,
        samples: Any = None,
        sensitivity_maps: Any = None,
    ) -> None:
        """Store one slice: (y, x) images, (sample, y, x) samples, (coil, y, x) maps. Any order; twice replaces."""
        if not 0 <= index < self.slices:
            raise ValueError(f"there is no slice {index} among {self.slices}")
        complex_mean = as_complex(mean)
        arrays = {
            "reconstruction": _numpy(complex_mean.abs(), torch.float32),
            "reconstruction_complex": _numpy(complex_mean, torch.complex64),
            "std": _numpy(std, torch.float32),
            "samples": _numpy(samples, torch.complex64),
            "sensitivity_maps": _numpy(sensitivity_maps, torch.complex64),
        }
        present = {key: array for key, array in arrays.items() if array is not None}
        expected = {key: dataset.shape[1:] for key, dataset in self._datasets.items()}
        found = {key: array.shape for key, array in present.items()}
        if expected and found != expected:
            raise ValueError(f"slice {index} has the arrays {found}, but the first one had {expected}")
        with self._blamed_on_the_file():
            for key, array in present.items():
                if not expected:
                    shape = (self.slices, *array.shape)
                    self._datasets[key] = self._file.create_dataset(key, shape, array.dtype)
                self._datasets[key][index] = array
            self._file.flush()
        self._written.add(index)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not self._open:
            return
        missing = self.slices - len(self._written)
        if kind is not None or missing:
            self._discard()
            if kind is None:
                raise ValueError(f"{missing} of {self.slices} slices of {self.path} were never written")
            return
        try:
            settings = {**self.attributes, **self._own}
            with self._blamed_on_the_file():
                self._file.attrs.update({key: _stored(value) for key, value in settings.items() if value is not None})
                self._file.flush()
        except TypeError as failure:  # a setting of a kind that HDF5 does not know
            self._discard()
            raise ValueError(f"the attributes of {self.path} cannot be stored: {failure}") from failure
        self._open = False
        self._manager.__exit__(None, None, None)

    @contextmanager
    def _blamed_on_the_file(self) -> Iterator[None]:
        """Whatever fails in here is the disk's fault: the manager removes the file and says so in an InputError.

        HDF5 cannot close a file whose last pages do not fit on the disk: it keeps failing, and in the end crashes the
        interpreter. Emptying the file, which is lost anyway, makes room for them.
        """
        try:
            yield
        except (OSError, RuntimeError) as error:
            self._open = False
            with suppress(OSError):
                os.truncate(self._file.filename, 0)
            self._manager.__exit__(type(error), error, error.__traceback__)
            raise

    def _discard(self) -> None:
        """Remove the file without blaming it: an exception of the caller's must not read as "cannot be written"."""
        self._open = False
        with suppress(_Discard):
            self._manager.__exit__(_Discard, _Discard(), None)


class _Discard(BaseException):
    pass


def load_reconstruction(path: str | Path) -> Reconstruction:
    """Read a file written by `Reconstruction.save` or `ReconstructionWriter`, all of it.

    Raises
    ------
    InputError
        If it cannot be read or is not such a file.
    """
    fields: dict[str, Any] = {}
    with open_hdf5(path) as file:
        for key in ("reconstruction_complex", "std", "samples", "sensitivity_maps"):
            if key in file:
                fields[key] = file[key][()]
        settings = {key: _restored(value) for key, value in file.attrs.items()}
    if "reconstruction_complex" not in fields:
        raise InputError(f"{path} has no dataset reconstruction_complex: it is not a reconstruction of mri-ambient.")
    fields["mean"] = fields.pop("reconstruction_complex")
    fields |= {key: settings.pop(key) for key in _OWN if key in settings}
    try:
        if "voxel_size" in fields:
            fields["voxel_size"] = tuple(np.asarray(fields["voxel_size"]).tolist())
        return Reconstruction(attributes=settings, **fields)
    except (ValueError, TypeError) as error:
        raise InputError(f"{path} is not a valid reconstruction: {error}.") from error


def image_geometry(scan: Scan) -> tuple[tuple[float, float, float] | None, np.ndarray | None]:
    """Voxel size in mm along (slice, y, x) and affine of the final image of a scan, each None where not known.

    The affine of a scan belongs to its full field of view; the image is the central crop to ``scan.recon_size``.

    Raises
    ------
    InputError
        If the scan has an affine that cannot be read.
    """
    sizes = [scan.attributes.get(f"voxel_mm_{axis}") for axis in ("slice", "y", "x")]
    voxel = None if None in sizes else (float(sizes[0]), float(sizes[1]), float(sizes[2]))  # type: ignore[arg-type]
    text = scan.attributes.get("affine")
    if text is None:
        return voxel, None
    try:
        affine = np.asarray(json.loads(str(text)), dtype=np.float64).reshape(4, 4)
    except ValueError as error:
        raise InputError(f"The affine of {scan.name} is not a 4 x 4 matrix in JSON: correct or remove it.") from error
    cut = [full // 2 - kept // 2 for full, kept in zip(scan.shape[2:], scan.recon_size, strict=True)]
    affine[:3, 3] += affine[:3, 1:3] @ cut
    return voxel, affine


def voxel_size_of(reconstruction: Reconstruction) -> tuple[float, float, float]:
    """Distance of voxels in mm along (slice, y, x): of the affine, else as given, else 1."""
    if reconstruction.affine is None:
        return reconstruction.voxel_size or (1.0, 1.0, 1.0)
    slice_mm, y_mm, x_mm = np.linalg.norm(reconstruction.affine[:3, :3], axis=0)
    return float(slice_mm), float(y_mm), float(x_mm)


def _numpy(x: Any, dtype: torch.dtype) -> np.ndarray | None:
    return None if x is None else torch.as_tensor(x).detach().to("cpu", dtype).resolve_conj().numpy()


def _stored(value: Any) -> Any:
    if isinstance(value, dict | list | tuple):
        return json.dumps(value, default=str)
    return str(value) if isinstance(value, Path) else value


def _restored(value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if isinstance(value, str) and value[:1] in ("{", "["):
        with suppress(ValueError):
            return json.loads(value)
    return value
