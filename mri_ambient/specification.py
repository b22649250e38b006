"""File formats described as data: the YAML files of ``mri_ambient.data_specs`` and the check of a file against one.

A specification lists datasets and attributes. A dataset has a kind of value and one or more admissible orders of axes;
of those with the right number of axes the first is taken, unless the dataset carries an attribute ``axes`` (such as
``"coil,y,x"``) that names another. An axis has one length throughout the file. What holds the datasets may be an HDF5
file or group, or a mapping from names to arrays.

A format whose k-space is a list of readouts (ISMRMRD, Siemens twix) also has `ReadoutSpecification`: which flag bit
means what, and which counter tells what.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any, Protocol

import numpy as np

from mri_ambient.errors import InputError

_KINDS = {
    "complex": ("c", "complex numbers"),
    "real": ("f", "real floating-point numbers"),
    "binary": ("biuf", "zeros and ones"),
    "text": ("OSU", "text"),
    "compound": ("V", "compound values"),
}


class Contents(Protocol):
    """Datasets by name: an HDF5 file or group, or a dict of arrays."""

    def __contains__(self, name: Any, /) -> bool: ...

    def __getitem__(self, name: str, /) -> Any: ...

    def __iter__(self) -> Any: ...


@dataclass(frozen=True)
class DatasetSpecification:
    """One dataset: kind of value, admissible axes, and what it means.

    Attributes
    ----------
    kind : str
        complex, real, binary, text or compound.
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
    single : tuple of str
        Axes that must have length 1.
    separate : tuple of str
        Axes along which every entry is a scan of its own.
    pairs : str or None
        Axis that alternates between real and imaginary parts: even, at least 4, and not longer than y and x.
    fields : tuple of str
        Members that a compound must have; ``head.idx`` is member idx of member head.
    """

    kind: str
    axes: tuple[tuple[str, ...], ...]
    units: str
    description: str
    required: bool
    role: str | None = None
    broadcast: tuple[str, ...] = ()
    single: tuple[str, ...] = ()
    separate: tuple[str, ...] = ()
    pairs: str | None = None
    fields: tuple[str, ...] = ()


@dataclass(frozen=True)
class ReadoutSpecification:
    """How a list of readouts is understood.

    Attributes
    ----------
    counters : dict of str to str
        Counter of the format that gives ``line``, ``partition``, ``slice`` and ``average``.
    separate : dict of str to str
        Counters along which every entry is a scan of its own; the key is the name that users see.
    flags : dict of str to int
        Bit (from 0) of ``noise``, ``calibration``, ``calibration_and_imaging``, ``reversed``.
    ignored : dict of str to int
        Bits of readouts that are neither image nor noise.
    """

    counters: dict[str, str]
    separate: dict[str, str]
    flags: dict[str, int]
    ignored: dict[str, int]


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
    """A file format.

    Attributes
    ----------
    name, title : str
        For machines and for readers.
    version : int
    format : str
        What holds the datasets: HDF5, NumPy, BART or twix.
    summary : str
    axes : dict of str to str
        Meaning of every axis.
    datasets, attributes : dict
        What a file may and must hold.
    readouts : ReadoutSpecification or None
        For formats that store readouts.
    acquired : dict of str to float
        Leading share of an axis that was acquired; the rest counts as zero-padded.
    image_origin : str
        ``centre`` if the transform of k-space is centred in both domains, ``corner`` if image index 0 is its origin.
    """

    name: str
    title: str
    version: int
    format: str
    summary: str
    axes: dict[str, str]
    datasets: dict[str, DatasetSpecification]
    attributes: dict[str, AttributeSpecification]
    readouts: ReadoutSpecification | None = None
    acquired: dict[str, float] = field(default_factory=dict)
    image_origin: str = "centre"

    def matches(self, contents: Contents) -> bool:
        """Whether all required datasets are there, of the right kind and number of axes; says nothing about sizes."""
        return all(
            name in contents and _alike(contents[name], expected)
            for name, expected in self.datasets.items()
            if expected.required
        )

    def check(self, contents: Contents, where: str, attributes: Any = None) -> Layout:
        """Check the contents of a file against the specification.

        Parameters
        ----------
        contents : Contents
            Open HDF5 file or group, or arrays by name. Only structure is read, no data.
        where : str
            Name of the file, for messages.
        attributes : mapping, optional
            Attributes of the file.

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
            if name in contents:
                _check_dataset(contents[name], f"{where}: dataset {name}", name, expected, layout)
            elif expected.required:
                found = ", ".join(sorted(map(str, contents))) or "nothing"
                raise InputError(
                    f"{where} has no dataset {name} (it holds {found}): rename or convert it to the {self.name} layout."
                )
        for name, wanted in self.attributes.items():
            value = plain(attributes[name]) if attributes is not None and name in attributes else None
            if value is not None:
                layout.attributes[name] = _checked_attribute(where, name, value, wanted)
        return layout


def _alike(dataset: Any, expected: DatasetSpecification) -> bool:
    shape = getattr(dataset, "shape", None)
    if shape is None or dataset.dtype.kind not in _KINDS[expected.kind][0]:
        return False
    ranks = [axes for axes in expected.axes if len(axes) == len(shape)]
    return bool(ranks) and _paired(dict(zip(ranks[0], shape, strict=True)), expected)


def _paired(sizes: dict[str, int], expected: DatasetSpecification) -> bool:
    """Whether the axis of real and imaginary parts can be one."""
    length = sizes.get(expected.pairs or "", 4)
    return length >= 4 and length % 2 == 0 and (expected.pairs is None or length <= min(sizes["y"], sizes["x"]))


def _check_dataset(dataset: Any, where: str, name: str, expected: DatasetSpecification, layout: Layout) -> None:
    if not hasattr(dataset, "shape"):
        kind = type(dataset).__name__.lower()
        raise InputError(f"{where} is not a dataset but a {kind}: store the array itself under this name.")
    codes, meaning = _KINDS[expected.kind]
    if dataset.dtype.kind not in codes:
        raise InputError(f"{where} must hold {meaning} but is stored as {dataset.dtype}: convert it.")
    _check_fields(where, dataset.dtype, expected.fields)
    axes = _choose_axes(where, dataset, expected)
    layout.axes[name] = axes
    for axis, size in zip(axes, dataset.shape, strict=True):
        if size == 0:
            raise InputError(f"{where} is empty along its {axis} axis (shape {dataset.shape}): export it again.")
        if size == 1 and axis in expected.broadcast:
            continue
        if size > 1 and axis in expected.single:
            raise InputError(
                f"{where} has {size} entries along its {axis} axis, which is not supported: extract one of them."
            )
        known = layout.sizes.setdefault(axis, size)
        if size != known:
            raise InputError(
                f"{where} has {size} entries along its {axis} axis where {known} are needed to fit the other "
                f"datasets: store it as ({', '.join(axes)})."
            )
    if not _paired(layout.sizes, expected):
        raise InputError(
            f"{where} has shape {dataset.shape}, whose last axis is no set of real and imaginary parts: store it as "
            f"({', '.join(axes)})."
        )


def _check_fields(where: str, dtype: np.dtype[Any], fields: tuple[str, ...]) -> None:
    for path in fields:
        inner: Any = dtype
        for name in path.split("."):
            if inner.names is None or name not in inner.names:
                raise InputError(f"{where} has no member {path}: write it with a current version of its library.")
            inner = inner[name]


def _choose_axes(where: str, dataset: Any, expected: DatasetSpecification) -> tuple[str, ...]:
    rank = len(dataset.shape or ())
    fitting = [axes for axes in expected.axes if len(axes) == rank]
    orders = " or ".join(f"({', '.join(axes)})" for axes in expected.axes)
    if not fitting or dataset.shape is None:
        raise InputError(f"{where} has shape {dataset.shape}: store it as {orders}.")
    named = plain(dataset.attrs.get("axes")) if hasattr(dataset, "attrs") else None
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
    """Load one of the shipped specifications, for example ``fastmri``.

    A specification that ``extends`` another has its axes, datasets and attributes too.
    """
    import yaml

    text = (resources.files("mri_ambient.data_specs") / f"{name}.yaml").read_text(encoding="utf-8")
    content = yaml.safe_load(text)
    base = content.pop("extends", None)
    datasets = {
        key: DatasetSpecification(**{option: _frozen(value) for option, value in entry.items()})
        for key, entry in content.pop("datasets", {}).items()
    }
    attributes = {key: AttributeSpecification(**entry) for key, entry in content.pop("attributes", {}).items()}
    axes = content.pop("axes", {})
    if base is not None:
        parent = load_specification(base)
        datasets = {**parent.datasets, **datasets}
        attributes, axes = {**parent.attributes, **attributes}, {**parent.axes, **axes}
    readouts = content.pop("readouts", None)
    return Specification(
        **content,
        axes=axes,
        datasets=datasets,
        attributes=attributes,
        readouts=None if readouts is None else ReadoutSpecification(**readouts),
    )


def _frozen(value: Any) -> Any:
    """Lists as tuples."""
    return tuple(map(_frozen, value)) if isinstance(value, list) else value
