"""Formats of scan files, one module each.

Every module has ``examine(path, part)``, which checks a file against its specification in ``data_specs`` and
describes it as a `ScanFile` without reading more of its arrays than that needs. `mri_ambient.readers` knows which
module a file belongs to. `readouts` puts lists of readouts on a Cartesian grid, for all formats that store them.
"""
