"""The former name of :mod:`core.datasets.names` and :mod:`core.datasets.vectors`."""

from core.datasets.names import read_attribute_names
from core.datasets.vectors import load_attribute_vectors, write_demo_vectors

__all__ = ["load_attribute_vectors", "read_attribute_names", "write_demo_vectors"]
