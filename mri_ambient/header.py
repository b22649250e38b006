"""The parts of an ISMRMRD XML header that reconstruction needs.

ISMRMRD counts (x, y, z) = (readout, first phase encoding, second phase encoding or slice), whereas arrays here are
(slice, y, x) with x the phase encoding: its x is our y and its y is our x.

Phase-encoding steps run from 0 to `maximum`, with the centre of k-space at step `center`. In an array of E encoded
columns, zero frequency is column E // 2, so step 0 lies at column E // 2 - center and the columns on either side of the
steps were never acquired but filled with zeros by the vendor:

    left = E // 2 - center,        right = width - (left + maximum + 1).

References
----------
S. J. Inati et al., "ISMRM Raw Data format: a proposed standard for MRI raw datasets", Magn. Reson. Med. 77, 2017.
"""

from __future__ import annotations

from dataclasses import dataclass
from xml.etree import ElementTree

from mri_ambient.errors import InputError


@dataclass(frozen=True)
class Header:
    """Geometry from an ISMRMRD header; None where the header does not say.

    Attributes
    ----------
    encoded_size, recon_size : tuple of int or None
        Matrix (y, x) of the encoded k-space and of the final image.
    center, maximum : int or None
        Step of the centre of k-space and last step, along the phase encoding.
    voxel_size : tuple of float or None
        Voxel (slice, y, x) in mm: in the plane that of the encoded matrix, since vendors may interpolate the final one.
    readout_size : int or None
        Samples of a readout without its oversampling: of the field of view of the final image.
    trajectory : str or None
        Such as cartesian, epi, radial, spiral.
    calibration_mode : str or None
        How lines for parallel imaging were acquired: embedded, interleaved, separate, external, other.
    noise_bandwidth : float
        Share of its nominal bandwidth from which the receiver takes noise.
    vendor : str or None
        Of the scanner, in lower case.
    """

    encoded_size: tuple[int, int] | None = None
    recon_size: tuple[int, int] | None = None
    center: int | None = None
    maximum: int | None = None
    voxel_size: tuple[float, float, float] | None = None
    readout_size: int | None = None
    trajectory: str | None = None
    calibration_mode: str | None = None
    noise_bandwidth: float = 1.0
    vendor: str | None = None

    def padding(self, width: int) -> tuple[int, int] | None:
        """Zero-padded columns (left, right) of k-space `width` columns wide; None if the header does not say."""
        if self.encoded_size is None or self.center is None or self.maximum is None:
            return None
        left = self.encoded_size[1] // 2 - self.center
        right = width - (left + self.maximum + 1)
        return max(0, left), max(0, right)


def has_encoding(xml: str | bytes) -> bool:
    """Whether a header says how k-space was encoded.

    Raises
    ------
    InputError
        If it is not XML.
    """
    try:
        return ElementTree.fromstring(xml).find("{*}encoding/{*}encodedSpace") is not None
    except (ElementTree.ParseError, ValueError) as error:
        raise InputError(f"The ISMRMRD header is invalid ({error}).") from error


def parse_header(xml: str | bytes, number: int = 0) -> Header:
    """Read the geometry from an ISMRMRD XML header, with or without its namespace.

    Parameters
    ----------
    xml : str or bytes
        The header.
    number : int
        Which of several encodings; the first one is usually the imaging data.

    Returns
    -------
    Header
        What it says.

    Raises
    ------
    InputError
        If it is not XML, or a size in it is not a positive number.
    """
    try:
        root = ElementTree.fromstring(xml)
        encodings = root.findall("{*}encoding")  # {*}: any namespace or none
        encoding = encodings[number] if number < len(encodings) else None
        recon = _numbers(encoding, "reconSpace/matrixSize", "xyz", smallest=1)
        encoded = _numbers(encoding, "encodedSpace/matrixSize", "xy", smallest=1)
        field = _numbers(encoding, "reconSpace/fieldOfView_mm", "xyz", smallest=1e-3)
        full = _numbers(encoding, "encodedSpace/fieldOfView_mm", "xy", smallest=1e-3)
        limits = _numbers(encoding, "encodingLimits/kspace_encoding_step_1", ("center", "maximum"), smallest=0)
        receiver = _numbers(root, "acquisitionSystemInformation", ("relativeReceiverNoiseBandwidth",), smallest=1e-3)
    except (ElementTree.ParseError, ValueError) as error:
        raise InputError(
            f"The ISMRMRD header is invalid ({error}): repair or delete the dataset ismrmrd_header."
        ) from error
    return Header(
        encoded_size=(int(encoded[0]), int(encoded[1])) if encoded else None,
        recon_size=(int(recon[0]), int(recon[1])) if recon else None,
        center=int(limits[0]) if limits else None,
        maximum=int(limits[1]) if limits else None,
        voxel_size=_voxel(field, recon, full, encoded),
        readout_size=min(round(encoded[0] * field[0] / full[0]), int(encoded[0]))
        if encoded and field and full
        else None,
        trajectory=_word(encoding, "trajectory"),
        calibration_mode=_word(encoding, "parallelImaging/calibrationMode"),
        noise_bandwidth=receiver[0] if receiver else 1.0,
        vendor=_word(root, "acquisitionSystemInformation/systemVendor"),
    )


def _voxel(
    field: list[float] | None, recon: list[float] | None, full: list[float] | None, encoded: list[float] | None
) -> tuple[float, float, float] | None:
    """From fields of view in mm and matrices, both in the order of the header."""
    if not field or not recon:
        return None
    plane, matrix = (full, encoded) if full and encoded else (field, recon)
    return field[2] / recon[2], plane[0] / matrix[0], plane[1] / matrix[1]


def _word(encoding: ElementTree.Element | None, path: str) -> str | None:
    text = None if encoding is None else encoding.findtext("/".join(f"{{*}}{step}" for step in path.split("/")))
    return text.strip().lower() or None if text else None


def _numbers(
    encoding: ElementTree.Element | None, path: str, names: str | tuple[str, ...], smallest: float
) -> list[float] | None:
    """Values of some children of the element at `path`; None if one of them is absent."""
    steps = "/".join(f"{{*}}{step}" for step in path.split("/"))
    element = None if encoding is None else encoding.find(steps)
    texts = [] if element is None else [element.findtext(f"{{*}}{name}") for name in names]
    if not texts or None in texts:
        return None
    values = [float(text or "") for text in texts]
    if not all(smallest <= value < 1e6 for value in values):
        raise ValueError(f"{path} is {', '.join(map(str, texts))}")
    return values
