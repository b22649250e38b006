r"""The report of a reconstruction: one HTML file with all slices, to be read without any program but a browser.

It shows the estimate, its standard deviation, the zero-filled image and, where they were kept, the posterior samples;
the window is chosen by the reader, the scale is that of the volume. Below are the sampling pattern, the coil
sensitivities, the agreement with k-space, and the settings.

Pictures are stored as `pictures.encode` says, with the levels and powers of `LAYERS`: the estimate in 511 steps, a
few to an error bar; in the standard deviation, which 8 samples give to a quarter, relative steps matter, hence the
square. That is about 0.1 MB for a slice of 256 x 256 with error bar and zero-filled image, and 0.05 MB more for each
sample that was kept. Values that are not finite are drawn as zero, and their number is stated.

Slices are encoded as they come, into a temporary file: memory does not depend on their number.
"""

import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np

from mri_ambient.errors import InputError
from mri_ambient.operators.arrays import as_complex
from mri_ambient.recon.chart import Series, chart
from mri_ambient.recon.consistency import PRIOR_FITS, noise_fits
from mri_ambient.recon.page import write_page
from mri_ambient.recon.pictures import Picture, coil_picture, colours, edges, encode, mask_picture
from mri_ambient.recon.result import Reconstruction

LAYERS: dict[str, dict[str, Any]] = {  # what can be seen of a slice, and how its picture is stored
    "image": {"title": "Reconstruction", "levels": 511, "power": 1.0},
    "std": {"title": "Uncertainty", "levels": 63, "power": 2.0},
    "sample": {"title": "Samples", "levels": 511, "power": 1.0},
    "zero": {"title": "Zero-filled", "levels": 255, "power": 1.0},
}
SAMPLED_PIXELS = 2**18  # of a volume, from which its white is found
NAMES = {
    "method": "Method",
    "prior": "Prior",
    "prior_hash": "Prior, hash of its weights",
    "samples_drawn": "Posterior samples",
    "steps": "Steps of a sample",
    "network_evaluations": "Network evaluations",
    "seed": "Seed",
    "acceleration": "Acceleration",
    "noise_std": "Noise per real component",
    "noise_source": "Noise is",
    "mask_source": "Sampling pattern is",
    "scale": "Scale, divided out and put back",
    "std_factor": "Error bars multiplied by",
    "chi_square_held_out": "χ² of held-out k-space",
    "empty_slices": "Slices without signal",
    "slices": "Slices",
    "coils": "Coils",
    "matrix": "Matrix (y, x)",
    "recon_size": "Image (y, x)",
    "seconds": "Time in seconds",
    "versions": "Versions",
}
_CHARTED = ("verdict", "chi_square_acquired", "chi_square_held_out_slices")


class ReportWriter:
    """Writes a report slice by slice; the counterpart of `ReconstructionWriter`.

    A context manager. The file appears when the block ends with all slices written; otherwise nothing is left behind.

    Parameters
    ----------
    path : str or Path
        The ``.html`` file.
    slices : int
        How many slices there will be.
    name, voxel_size, affine
        As in `Reconstruction`; they decide the shape of the pixels and the letters at the edges of the image.

    Attributes
    ----------
    attributes : dict
        Settings and facts to be listed; may be extended until the block ends. Those that `Reconstructor.attributes`
        gives about the agreement with k-space are drawn.

    Raises
    ------
    InputError
        If the file cannot be written.
    ValueError
        If the block ends without all slices, or they do not fit each other.
    """

    def __init__(
        self,
        path: str | Path,
        slices: int,
        *,
        name: str = "scan",
        voxel_size: tuple[float, float, float] | None = None,
        affine: np.ndarray | None = None,
    ) -> None:
        self.path, self.slices, self.name = Path(path), slices, name
        self.attributes: dict[str, Any] = {}
        self._voxel_size, self._affine = voxel_size, affine
        self._shape: tuple[int, ...] | None = None
        self._peaks: dict[str, list[list[float]]] = {}
        self._values: dict[str, list[np.ndarray]] = {"image": [], "std": []}
        self._not_finite = 0
        self._mask: Picture | None = None
        self._coils: Picture | None = None

    def __enter__(self) -> "ReportWriter":
        with self._blamed_on_the_file():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._spool: IO[str] = tempfile.TemporaryFile("w+", encoding="ascii", dir=self.path.parent)
        return self

    def write(self, index: int, mean: Any, std: Any = None, samples: Any = None, zero_filled: Any = None) -> None:
        """Add one slice: (y, x) images, real or complex, and (sample, y, x) samples. Each index once, in any order."""
        pictures = {"image": mean, "std": std, "sample": samples, "zero": zero_filled}
        for layer, given in pictures.items():
            if given is None:
                continue
            images = as_complex(given).abs().numpy() if layer != "std" else np.asarray(given, np.float32)
            images = images[None] if images.ndim == 2 else images
            self._shape = self._shape or images.shape[1:]
            if images.shape[1:] != self._shape:
                raise ValueError(f"a {layer} of the shape {images.shape[1:]} does not fit images {self._shape}")
            peaks = self._peaks.setdefault(layer, [[] for _ in range(self.slices)])
            for number, image in enumerate(images):
                peaks[index].append(self._store(f"{layer}-{index}-{number}", image, LAYERS[layer]))
            if layer in self._values:
                values = np.nan_to_num(images[0], posinf=0, neginf=0).ravel()
                step = values.size * self.slices // SAMPLED_PIXELS | 1  # odd, so that all columns have their turn
                self._values[layer].append(values[::step].copy())

    def _store(self, block: str, image: np.ndarray, form: dict[str, Any]) -> float:
        """Write an encoded picture to the spool; returns its peak."""
        finite = np.isfinite(image)
        self._not_finite += int(image.size - finite.sum())
        text, peak = encode(np.where(finite, image, 0), form["levels"], form["power"])
        with self._blamed_on_the_file():
            self._spool.write(f'<script type="text/plain" id="{block}">{text}</script>\n')
        return peak

    def draw_acquisition(self, index: int, mask: Any, sensitivity_maps: Any) -> None:
        """Add pictures of how a slice was acquired.

        Parameters
        ----------
        index : int
            The slice.
        mask : array (x,), (y, x) or (slice, 1 or y, x), bool
            Sampling mask of the scan.
        sensitivity_maps : array (coil, y, x)
            Of the slice.
        """
        maps = as_complex(sensitivity_maps).abs().numpy()
        self._mask = mask_picture(np.asarray(mask, bool), maps.shape[-2], index)
        self._coils = coil_picture(maps, index)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._blamed_on_the_file(), self._spool:
            if kind is None:
                self._finish()

    @contextmanager
    def _blamed_on_the_file(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InputError(f"{self.path} cannot be written ({error.strerror}): choose another place.") from error

    def _finish(self) -> None:
        missing = sum(not peaks for peaks in self._peaks.get("image", [[]] * self.slices))
        if missing:
            raise ValueError(f"{missing} of {self.slices} slices of {self.path} were never written")
        white, white_std = (self._white(layer) for layer in ("image", "std"))
        attributes = {key: value for key, value in self.attributes.items() if value is not None}
        write_page(
            self.path, "reconstruction.html", script="viewer.js",
            name=self.name, slices=self.slices, not_finite=self._not_finite,
            viewer=self._viewer(white, white_std), white=white,
            verdict=_verdict(attributes), fit=_fit(attributes),
            mask=self._mask, coils=self._coils, edges=edges(self._affine),
            settings=_settings(attributes),
            blocks=self._blocks(),
        )  # fmt: skip

    def _white(self, layer: str) -> float:
        values = self._values[layer]
        return float(np.percentile(np.concatenate(values), 99.9)) or 1.0 if values else 1.0

    def _viewer(self, white: float, white_std: float) -> dict[str, Any]:
        """What the script needs to know; intensities are shares of white."""
        height, width = self._shape or (1, 1)
        _, pixel_y, pixel_x = self._voxel_size or (1.0, 1.0, 1.0)
        aspect = width * pixel_x / (height * pixel_y) if pixel_y else 0.0
        layers = [
            {
                **LAYERS[layer],
                "key": layer,
                "peaks": [[peak / white for peak in peaks] for peaks in self._peaks[layer]],
                "high": white_std / white if layer == "std" else 1.0,
            }
            for layer in LAYERS
            if layer in self._peaks
        ]
        return {
            "slices": self.slices,
            "height": height,
            "width": width,
            "aspect": aspect if 0 < aspect < math.inf else width / height,
            "layers": layers,
            "colours": colours(),
        }

    def _blocks(self) -> Iterator[str]:
        self._spool.seek(0)
        return self._spool


def html_report(path: str | Path, reconstruction: Reconstruction, zero_filled: Any = None) -> Path:
    """Write the report of a reconstruction in memory.

    Parameters
    ----------
    path : str or Path
        The ``.html`` file.
    reconstruction : Reconstruction
    zero_filled : array (slice, y, x), optional
        For comparison, in the unit of the reconstruction.

    Returns
    -------
    Path

    Raises
    ------
    ValueError
        If the shape of `zero_filled` is not that of the reconstruction.
    InputError
        If the file cannot be written.
    """
    volume, count = reconstruction, len(reconstruction.mean)
    if zero_filled is not None and np.shape(zero_filled) != tuple(volume.mean.shape):
        shapes = f"{np.shape(zero_filled)} do not fit the reconstruction {tuple(volume.mean.shape)}"
        raise ValueError(f"zero-filled images {shapes}")
    with ReportWriter(path, count, name=volume.name, voxel_size=volume.voxel_size, affine=volume.affine) as report:
        for index in range(count):
            arrays = (volume.mean, volume.std, volume.samples, zero_filled)
            report.write(index, *(None if array is None else array[index] for array in arrays))
        report.attributes |= volume.attributes
    return Path(path)


def _verdict(attributes: dict[str, Any]) -> dict[str, str]:
    """The sentence of the check against held-out k-space, and how it went."""
    text = str(attributes.get("verdict", "")) or "This method does not compare itself with held-out k-space."
    kind = "bad" if text.startswith("DOES NOT FIT") else "good" if "agrees" in text else "open"
    return {"text": text, "kind": kind}


def _fit(attributes: dict[str, Any]) -> str:
    """Chi-square of acquired and held-out k-space, slice by slice, as a chart."""
    acquired = list(attributes.get("chi_square_acquired") or [])
    held_out = dict(attributes.get("chi_square_held_out_slices") or {})
    series = [
        Series("acquired k-space", range(len(acquired)), acquired),
        Series("held-out k-space", [int(i) for i in held_out], list(held_out.values()), "square"),
    ]
    title = "Chi-square of acquired and of held-out k-space, by slice; 1 is expected"
    bands = (PRIOR_FITS, noise_fits(int(attributes.get("coils", 8))))
    return chart(series, title=title, x_label="slice", y_label="χ²", bands=bands)


def _settings(attributes: dict[str, Any]) -> dict[str, str]:
    """What is listed: known settings in their order, then all others."""
    order = [key for key in NAMES if key in attributes] + [key for key in attributes if key not in (*NAMES, *_CHARTED)]
    return {NAMES.get(key, key): _shown(attributes[key]) for key in order}


def _shown(value: Any) -> str:
    """A setting as text."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.5g}" if isinstance(value, float) else str(value)
