"""Files that are never half-written, locks, checksums, and JSON of bounded size."""

from __future__ import annotations

import contextlib
import errno
import functools
import glob
import hashlib
import json
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from core.files.errors import UserError
from core.files.system import fcntl

log = logging.getLogger(__name__)

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


class Busy(UserError):
    """Another process is writing the same file."""


class Lock(contextlib.AbstractContextManager["Lock"]):
    """`<final>.lock`, held while a process writes ``final``; a second process is refused, a dead one is no obstacle."""

    def __init__(self, final: Path) -> None:
        self.path = final.with_name(final.name + ".lock")
        while True:
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                os.close(self._descriptor)
                raise Busy(
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
        """Let the next process in; so does the end of a ``with``."""
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)
        os.close(self._descriptor)

    def __exit__(self, *_: object) -> None:
        self.release()


def is_locked(final: Path) -> bool:
    """Whether a process holds the lock of ``final`` now."""
    try:
        descriptor = os.open(final.with_name(final.name + ".lock"), os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


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


def read_json(path: Path | str) -> Any:
    """Parse a JSON file of bounded size.

    Raises:
        UserError: missing, too large, nested too deeply, or not JSON; names the file.
    """
    path = Path(path)
    try:
        if (size := path.stat().st_size) > JSON_LIMIT:
            raise UserError(f"{path} has {size} bytes; nothing above {JSON_LIMIT} is read as JSON")
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not readable JSON ({type(error).__name__}: {error})") from error
