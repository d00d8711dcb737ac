"""Numeric numpy arrays from pickles (DAZLE's files of word vectors), through a list of the few names they need."""

from __future__ import annotations

import io
import math
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np

from core.files import sandbox
from core.files.errors import UserError


class PickledArray:
    """What a pickle says about an array; numpy itself would trust the type and shape, which a file chooses."""

    def __setstate__(self, state: Any) -> None:
        _, self.shape, self.dtype, self.fortran, self.data = state

    def array(self) -> np.ndarray:
        """The array.

        Raises:
            ValueError: not numeric, or as many bytes as shape and type need are not there.
        """
        data = self.data.encode("latin1") if isinstance(self.data, str) else self.data
        code = self.dtype.order + self.dtype.code if isinstance(self.dtype, _Dtype) else ""
        if not re.fullmatch(r"[<>|=](f[248]|[iu][1248])", code) or not isinstance(data, bytes | bytearray):
            raise ValueError("an array of other things than numbers")
        shape = [int(n) for n in self.shape]
        if min(shape, default=0) < 0 or math.prod(shape) * np.dtype(code).itemsize != len(data):
            raise ValueError(f"an array of shape {tuple(shape)} in {len(data)} bytes")
        return np.array(np.frombuffer(data, code).reshape(shape, order="F" if self.fortran else "C"))


class _Dtype:
    def __init__(self, code: Any, *_: Any) -> None:
        self.code, self.order = str(code), "="

    def __setstate__(self, state: Any) -> None:
        self.order = state[1]


def _frombuffer(data: Any, dtype: Any, shape: Any, order: Any) -> PickledArray:
    array = PickledArray()
    array.__setstate__((1, shape, dtype, order == "F", data))
    return array


_ALLOWED = {
    "multiarray._reconstruct": lambda *_: PickledArray(),
    "numeric._frombuffer": _frombuffer,
    "numpy.ndarray": PickledArray,
    "numpy.dtype": _Dtype,
    "_codecs.encode": lambda text, _: text.encode("latin1"),
}


class ArrayUnpickler(pickle.Unpickler):
    """Rebuilds arrays as :class:`PickledArray` and nothing else. Only for the sandbox, which bounds its memory."""

    def __init__(self, content: bytes) -> None:
        # latin1 is how numpy arrays pickled by Python 2 (DAZLE's files) are read
        super().__init__(io.BytesIO(content), encoding="latin1")

    def find_class(self, module: str, name: str) -> Any:
        known = f"{re.sub(r'^numpy[.]_?core[.]', '', module)}.{name}"
        if known not in _ALLOWED:
            raise UserError(
                f"the pickle asks for {module}.{name}, which is not part of a plain numpy array; not loaded"
            )
        return _ALLOWED[known]


def read_array(path: str) -> np.ndarray:
    """In the sandbox: the array."""
    try:
        value = ArrayUnpickler(Path(path).read_bytes()).load()
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    try:
        if isinstance(value, PickledArray):
            return value.array()
        what = f"a {type(value).__name__}"
    except ValueError as error:
        what = str(error)
    raise UserError(
        f"{path} holds {what}; one array of real numbers is needed: pickle.dump(a.astype('float32'), file, protocol=2)"
    )


def load_array_pickle(path: Path | str) -> np.ndarray:
    """One numeric numpy array from a pickle, without running anything in it.

    Raises:
        UserError: missing file, truncated, asking for too much, or holding anything but one numeric array.
    """
    return sandbox.call("core.files.pickles:read_array", str(path), kind="pickled numpy array", memory=2 << 30)
