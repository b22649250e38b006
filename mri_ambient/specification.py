"""File formats described as data: the YAML files of ``mri_ambient.data_specs`` and the check of a file against one.

A specification lists datasets and attributes. A dataset has a kind of value and one or more admissible orders of axes;
of those with the right number of axes the first is taken, unless the dataset carries an attribute ``axes`` (such as
``"coil,y,x"``) that names another. An axis has one length throughout the file.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np

from mri_ambient.errors import InputError

if TYPE_CHECKING:
    import h5py

_KINDS = {
    "complex": ("c", "complex numbers"),
    "real": ("f", "real floating-point numbers"),
    "binary": ("biuf", "zeros and ones"),
    "text": ("OSU", "text"),
}


@dataclass(frozen=True)
class DatasetSpecification:
    """One dataset: kind of value, admissible axes, and what it means.

    Attributes
    ----------
    kind : str
        complex, real, binary or text.
    axes : tuple of tuple of str
        Admissible orders of axes.
    units, description : str
        For the reader.
    required : bool
        Whether a file without it is refused.
    role : str or None
        What it is used as, where several datasets can serve.
    broadcast : tuple of str
        Axes that may also have length 1.
    """

    kind: str
    axes: tuple[tuple[str, ...], ...]
    units: str
    description: str
    required: bool
    role: str | None = None
    broadcast: tuple[str, ...] = ()


@dataclass(frozen=True)
class AttributeSpecification:
    """One optional attribute of the file: text, number or integers of some length, not below a minimum."""

    kind: str
    units: str
    description: str
    minimum: float | None = None
    length: int | None = None


@dataclass(frozen=True)
class Layout:
    """What a file that passed the check looks like.

    Attributes
    ----------
    axes : dict of str to tuple of str
        Axes of every dataset of the specification that is present.
    sizes : dict of str to int
        Length of every axis that occurs.
    attributes : dict
        Attributes of the specification that are present, as Python values.
    """

    axes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    attributes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Specification:
    """A file format."""

    name: str
    version: int
    format: str
    summary: str
    axes: dict[str, str]
    datasets: dict[str, DatasetSpecification]
    attributes: dict[str, AttributeSpecification]

    def check(self, file: h5py.File) -> Layout:
        """Check an open file against the specification.

        Parameters
        ----------
        file : h5py.File
            The file. Only its structure and attributes are read, no data.

        Returns
        -------
        Layout
            Axes, sizes and attributes found.

        Raises
        ------
        InputError
            If a required dataset is missing, or a dataset or attribute is not as specified.
        """
        layout = Layout()
        for name, expected in self.datasets.items():
            if name in file:
                self._check_dataset(file, name, expected, layout)
            elif expected.required:
                found = ", ".join(sorted(map(str, file))) or "nothing"
                raise InputError(
                    f"{file.filename} has no dataset {name} (it holds {found}): rename or convert it to the "
                    f"{self.name} layout."
                )
        for name, wanted in self.attributes.items():
            value = plain(file.attrs[name]) if name in file.attrs else None
            if value is not None:
                layout.attributes[name] = _checked_attribute(file.filename, name, value, wanted)
        return layout

    def _check_dataset(self, file: h5py.File, name: str, expected: DatasetSpecification, layout: Layout) -> None:
        dataset, where = file[name], f"{file.filename}: dataset {name}"
        if not hasattr(dataset, "shape"):
            kind = type(dataset).__name__.lower()
            raise InputError(f"{where} is not a dataset but a {kind}: store the array itself under this name.")
        codes, meaning = _KINDS[expected.kind]
        if dataset.dtype.kind not in codes:
            raise InputError(f"{where} must hold {meaning} but is stored as {dataset.dtype}: convert it.")
        axes = _choose_axes(where, dataset, expected)
        layout.axes[name] = axes
        for axis, size in zip(axes, dataset.shape, strict=True):
            if size == 0:
                raise InputError(f"{where} is empty along its {axis} axis (shape {dataset.shape}): export it again.")
            if size == 1 and axis in expected.broadcast:
                continue
            known = layout.sizes.setdefault(axis, size)
            if size != known:
                raise InputError(
                    f"{where} has {size} entries along its {axis} axis where {known} are needed to fit the other "
                    f"datasets: store it as ({', '.join(axes)})."
                )


def _choose_axes(where: str, dataset: Any, expected: DatasetSpecification) -> tuple[str, ...]:
    rank = len(dataset.shape or ())
    fitting = [axes for axes in expected.axes if len(axes) == rank]
    orders = " or ".join(f"({', '.join(axes)})" for axes in expected.axes)
    if not fitting or dataset.shape is None:
        raise InputError(f"{where} has shape {dataset.shape}: store it as {orders}.")
    named = plain(dataset.attrs.get("axes"))
    if named is None:
        return fitting[0]
    wanted = tuple(part.strip() for part in str(named).split(","))
    if wanted not in fitting:
        raise InputError(f"{where} calls its axes {named!r}: store it as {orders}.")
    return wanted


def _checked_attribute(filename: str, name: str, value: Any, wanted: AttributeSpecification) -> Any:
    if wanted.kind == "text":
        return str(value)
    values = value if isinstance(value, list) else [value]
    length = wanted.length or 1
    kinds = (int,) if wanted.kind == "integers" else (int, float)
    good = len(values) == length and all(isinstance(v, kinds) and np.isfinite(v) for v in values)
    if not good or (wanted.minimum is not None and min(values) < wanted.minimum):
        bound = "" if wanted.minimum is None else f" not below {wanted.minimum:g}"
        noun = f"{length} integers" if wanted.kind == "integers" else "a number"
        raise InputError(f"{filename}: attribute {name} is {value} but must be {noun}{bound}: correct or delete it.")
    return tuple(values) if wanted.length else float(values[0])


def plain(value: Any) -> Any:
    """An HDF5 attribute as str, int, float, bool or list of these; None for an attribute without a value."""
    if value is None or type(value).__name__ == "Empty":
        return None
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


@cache
def load_specification(name: str) -> Specification:
    """Load one of the shipped specifications, for example ``fastmri``."""
    import yaml

    text = (resources.files("mri_ambient.data_specs") / f"{name}.yaml").read_text(encoding="utf-8")
    content = yaml.safe_load(text)
    datasets = {
        key: DatasetSpecification(
            **{**entry, "axes": tuple(map(tuple, entry["axes"])), "broadcast": tuple(entry.get("broadcast", ()))}
        )
        for key, entry in content.pop("datasets").items()
    }
    attributes = {key: AttributeSpecification(**entry) for key, entry in content.pop("attributes").items()}
    return Specification(**content, datasets=datasets, attributes=attributes)
