"""Descriptions of the file formats, one YAML file each, that the loaders validate against."""
