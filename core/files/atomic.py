"""Files that are never half-written, locks, checksums, and JSON."""

import contextlib
import glob
import hashlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from core.files.errors import UserError, first_line

_STALE = 3600  # seconds without a write after which a temporary file is what a killed process left


@contextlib.contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Yield a temporary name beside ``path``; on success make its content durable and rename it to ``path``.

    On an exception the temporary file is removed and ``path`` is left as it was; what the system refuses (a full disk,
    permissions) is one sentence.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for old in path.parent.glob(f".{glob.escape(path.name)}.[0-9]*.tmp"):
            with contextlib.suppress(OSError):
                if time.time() - old.stat().st_mtime >= _STALE:
                    old.unlink()
        yield temporary
        with open(temporary, "r+b") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except OSError as error:  # h5py's text is a paragraph
        why = os.strerror(error.errno) if error.errno else first_line(error)
        way = "Nothing was changed there: make room, or choose another place (--out), and run it again"
        raise UserError(f"cannot write {path}: {why}. {way}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


class Busy(UserError):
    """Another process is writing the same file."""


class Lock(contextlib.AbstractContextManager["Lock"]):
    """`<final>.lock`, held while a process writes ``final``; a second process is refused, a dead one is no obstacle."""

    def __init__(self, final: Path) -> None:
        self.path = final.with_name(final.name + ".lock")
        self._lock = FileLock(self.path, timeout=0, thread_local=False)
        try:
            final.parent.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
        except Timeout as error:
            raise Busy(f"another process is writing {final}; wait for it or choose another --out") from error
        except OSError as error:
            way = "choose another --out, on a local disk"
            raise UserError(f"{self.path} cannot be locked ({error.strerror}); {way}") from error

    def release(self) -> None:
        """Let the next process in; so does the end of a ``with``."""
        with contextlib.suppress(OSError):
            self.path.unlink()  # while it is held: who opened it before finds it gone, and is refused
        self._lock.release()

    def __exit__(self, *_: object) -> None:
        self.release()


def is_locked(final: Path) -> bool:
    """Whether a process holds the lock of ``final`` now."""
    try:
        if final.with_name(final.name + ".lock").exists():
            Lock(final).release()
    except UserError:
        return True
    return False


def write_bytes(path: Path | str, content: bytes) -> None:
    """Write ``content`` to ``path`` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def sha256_file(path: Path | str) -> str:
    """Hexadecimal SHA-256 of a file's content."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def read_json(path: Path | str) -> Any:
    """Parse a JSON file; the error names it."""
    try:
        return json.loads(Path(path).read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not readable JSON ({type(error).__name__}: {error})") from error
