"""Files that are never half-written, and files from strangers that cannot run code."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import glob
import hashlib
import io
import json
import logging
import math
import os
import pickle
import re
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from core.files.errors import UserError

log = logging.getLogger(__name__)

PICKLE_LIMIT = 32 << 20  # bytes; the largest published attribute file is under 1 MB
JSON_LIMIT = 64 << 20
_STALE = 600  # seconds after which the temporary file of a dead process is removed
_NOT_SUPPORTED = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)  # what fsync says where there is none


@contextlib.contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Yield a temporary name beside ``path``; on success fsync it, rename it to ``path`` and fsync the folder.

    On an exception the temporary file is removed and ``path`` is left as it was.

    Raises:
        UserError: the folder cannot be made, or the disk refuses.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {path.parent}: {error.strerror}. Choose another place.") from error
    _sweep(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb") as handle:
            fsync(handle.fileno())
        os.replace(temporary, path)
        fsync_folder(path.parent)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}. Nothing was changed there.") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _sweep(path: Path) -> None:
    """Remove what a killed process left of an earlier write of ``path``."""
    for old in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        with contextlib.suppress(OSError, ValueError):
            pid = int(old.name.split(".")[-2])
            # the age spares the file of a living process on another machine
            if time.time() - old.stat().st_mtime > _STALE and not _alive(pid):
                old.unlink()


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


def fsync(descriptor: int) -> None:
    """Make a file's content durable. Where the file system has no fsync, say so once and go on.

    Raises:
        OSError: the disk is full or failing.
    """
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NOT_SUPPORTED:
            raise
        _warn_no_fsync()


@functools.cache
def _warn_no_fsync() -> None:
    log.warning("this file system has no fsync: a power failure may cost what was written last")


def fsync_folder(folder: Path) -> None:
    """Make a rename in ``folder`` durable, where the file system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class Lock:
    """`<final>.lock`, held while a process writes ``final``; a second process is refused, a dead one is no obstacle."""

    def __init__(self, final: Path) -> None:
        self.path = final.with_name(final.name + ".lock")
        while True:
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                os.close(self._descriptor)
                raise UserError(
                    f"another process is writing {final} (it holds {self.path}); wait for it or choose another --out"
                ) from error
            except OSError as error:
                os.close(self._descriptor)
                self.path.unlink(missing_ok=True)
                raise UserError(
                    f"the file system of {final} cannot lock files ({error.strerror}), so two runs could overwrite "
                    "each other; choose --out on a local disk and copy the result"
                ) from error
            with contextlib.suppress(FileNotFoundError):
                if os.stat(self.path).st_ino == os.fstat(self._descriptor).st_ino:
                    return
            os.close(self._descriptor)  # removed between open and lock

    def release(self) -> None:
        """Let the next process in."""
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)
        os.close(self._descriptor)


def write_bytes(path: Path | str, content: bytes) -> None:
    """Write ``content`` to ``path`` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def sha256_file(path: Path | str) -> str:
    """Hexadecimal SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with open(path, "rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_json(path: Path | str, limit: int = JSON_LIMIT) -> Any:
    """Parse a JSON file of bounded size.

    Raises:
        UserError: missing, too large, nested too deeply, or not JSON; names the file.
    """
    path = Path(path)
    try:
        if (size := path.stat().st_size) > limit:
            raise UserError(f"{path} has {size} bytes; nothing above {limit} is read as JSON")
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not readable JSON ({type(error).__name__}: {error})") from error


class PickledArray:
    """What a pickle says about one numpy array; made an array by :meth:`array` only after its sizes are checked.

    numpy's own ``__setstate__`` trusts dtypes and shapes, which a hostile file chooses.
    """

    __slots__ = ("_code", "_data", "_fortran", "_shape")

    def __init__(self, *state: Any) -> None:
        """Args: (version, shape, dtype, fortran, data), or nothing before ``__setstate__``."""
        if state:
            self.__setstate__(state)

    def __setstate__(self, state: Any) -> None:
        _, self._shape, dtype, self._fortran, self._data = state
        self._code = dtype.code() if isinstance(dtype, _PickledDtype) else ""

    def array(self) -> np.ndarray:
        """The array.

        Raises:
            ValueError: not numeric, or as many bytes as shape and type need are not there.
        """
        data = self._data.encode("latin1") if isinstance(self._data, str) else self._data
        if not re.fullmatch(r"[<>|=](f[248]|[iu][1248])", self._code) or not isinstance(data, bytes | bytearray):
            raise ValueError("not a numeric numpy array")
        dtype = np.dtype(self._code)
        shape = [int(n) for n in self._shape]
        if len(shape) > 8 or any(n < 0 for n in shape) or math.prod(shape) * dtype.itemsize != len(data):
            raise ValueError(f"an array of shape {tuple(shape)} in {len(data)} bytes")
        return np.array(np.frombuffer(data, dtype).reshape(shape, order="F" if self._fortran else "C"))


class _PickledDtype:
    """A dtype's two letters and its byte order."""

    __slots__ = ("_name", "_order")

    def __init__(self, name: Any) -> None:
        self._name, self._order = name, "="

    def __setstate__(self, state: Any) -> None:
        self._order = state[1]

    def code(self) -> str:
        """Such as ``<f4``."""
        return f"{self._order}{self._name}"


class _StandIn:
    """Is called where the pickle calls numpy; a fresh one each time, so that a pickle cannot change it for the next."""

    __slots__ = ("_budget", "_name")

    def __init__(self, name: str, budget: list[int]) -> None:
        self._name, self._budget = name, budget

    def __call__(self, *args: Any) -> Any:
        if self._name == "dtype":
            return _PickledDtype(args[0])
        if self._name == "_reconstruct":
            return PickledArray()
        if self._name == "_frombuffer":
            data, dtype, shape, order = args
            return PickledArray(1, shape, dtype, order == "F", data)
        if self._name == "encode" and args[1] == "latin1":
            self._budget[0] -= len(args[0])
            if self._budget[0] >= 0:
                return args[0].encode("latin1")
        raise ValueError(f"a call of {self._name} that no plain array makes")


_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy.core.numeric", "_frombuffer"),
    ("numpy._core.numeric", "_frombuffer"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}


class ArrayUnpickler(pickle._Unpickler):  # type: ignore[name-defined]
    """Rebuilds numeric arrays as :class:`PickledArray` and nothing else; memory is bounded by the file's size.

    Python's own form of the class: the C form sets aside memory for any number the file names.
    """

    def __init__(self, content: bytes) -> None:
        # latin1 is how numpy arrays pickled by Python 2 (DAZLE's files) are read
        super().__init__(io.BytesIO(content), encoding="latin1")
        self._budget = [len(content)]  # bytes that text may still be turned into

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ALLOWED:
            return _StandIn(name, self._budget)
        raise UserError(f"the pickle asks for {module}.{name}, which is not part of a plain numpy array; not loaded")

    def _bytearray(self) -> None:
        (size,) = struct.unpack("<Q", self.read(8))
        data = self.read(min(size, self._budget[0]))
        if len(data) != size:
            raise ValueError("truncated")
        self.append(bytearray(data))

    read: Callable[[int], bytes]  # set by load(), as is append
    append: Callable[[Any], None]
    dispatch: ClassVar[dict[int, Any]] = {**pickle._Unpickler.dispatch, pickle.BYTEARRAY8[0]: _bytearray}  # type: ignore[attr-defined]


def load_array_pickle(path: Path | str) -> np.ndarray:
    """Load one numeric numpy array from a pickle without running anything in it.

    Raises:
        UserError: missing file, too large, truncated, or holding anything but one numeric array.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no attribute vectors at {path}")
    if path.stat().st_size > PICKLE_LIMIT:
        raise UserError(f"{path} is larger than {PICKLE_LIMIT >> 20} MiB: not an attribute vector file")
    try:
        value = ArrayUnpickler(path.read_bytes()).load()
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except Exception as error:  # a damaged pickle raises nearly anything
        raise UserError(f"{path} is not a readable pickle ({type(error).__name__}: {error})") from error
    if not isinstance(value, PickledArray):
        raise UserError(f"{path} holds {type(value).__name__}, not a numeric numpy array")
    try:
        return value.array()
    except Exception as error:
        raise UserError(f"{path} does not hold a numeric numpy array ({error})") from error
