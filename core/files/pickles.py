"""Numeric numpy arrays from pickles (DAZLE's files of word vectors), through a list of the few names they need."""

import io
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np

from core.files.errors import UserError
from core.files.kinds import unreadable

_ARRAYS: dict[str, Any] = {
    "multiarray._reconstruct": np.ndarray.__reduce__(np.empty(0))[0],
    "numeric._frombuffer": np.empty(0).__reduce_ex__(5)[0],
    "numpy.ndarray": np.ndarray,
    "numpy.dtype": np.dtype,
    "_codecs.encode": lambda text, _: text.encode("latin1"),
}


class ArrayUnpickler(pickle.Unpickler):
    """Rebuilds numpy arrays and nothing else."""

    def __init__(self, content: bytes) -> None:
        # latin1 is how numpy arrays pickled by Python 2 (DAZLE's files) are read
        super().__init__(io.BytesIO(content), encoding="latin1")

    def find_class(self, module: str, name: str) -> Any:
        known = f"{re.sub(r'^numpy[.]_?core[.]', '', module)}.{name}"
        if known not in _ARRAYS:
            raise UserError(f"the pickle asks for {module}.{name}, which is no part of a numpy array; not loaded")
        return _ARRAYS[known]


def load_array_pickle(path: Path | str) -> np.ndarray:
    """One numeric numpy array from a pickle, without running anything in it."""
    try:
        value = ArrayUnpickler(Path(path).read_bytes()).load()
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except Exception as error:  # a damaged file raises nearly anything
        raise unreadable(path, "pickled numpy array", error) from error
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiu":
        raise UserError(f"{path} holds {getattr(value, 'dtype', type(value).__name__)}, not one array of real numbers")
    return value
