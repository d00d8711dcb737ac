"""One kind of error for everything a user can mend, and the wrapper that prints it without a traceback."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

LONGEST = 200  # characters of one value in a message; a path may have more, but no piece of it
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "bad_alloc", "_ALLOC_FAILED")


class UserError(Exception):
    """Something the user can mend. The message says what went wrong, where we looked, and what fixes it."""


def differences(there: Mapping[str, Any], now: Mapping[str, Any], where: str = "now") -> list[str]:
    """``key: 1 there, 2 now`` of all that is not alike, a record within a record key by key."""
    found = []
    for key in sorted({*there, *now}):
        a, b = there.get(key), now.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found += [f"{key}.{line}" for line in differences(a, b, where)]
        elif a != b:
            found.append(f"{key}: {a!r} there, {b!r} {where}")
    return found


def first_line(error: BaseException) -> str:
    """What an error says, without the rest of a long story."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def library(module: str, who: str, package: str) -> Any:
    """A module of a package that not every installation has.

    Raises:
        UserError: it is not installed; says who needs it, and how to install it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"{who} needs {package}, which is not installed ({error}): pip install {package}") from error


def run_cli(command: str | Callable[..., int | None], *args: Any) -> int:
    """Run a command and turn what a user can mend into a message and exit code 2.

    That is a :class:`UserError`, memory that is not enough, and what the system refuses (a full disk, permissions).

    Args:
        command: a module with a function ``main(*args)``, imported here so that an interruption of the import is one
            line too; or the function itself.
    """
    sys.stdout, sys.stderr = (s or open(os.devnull, "w") for s in (sys.stdout, sys.stderr))  # noqa: SIM115 (closed: >&-)
    for stream in (sys.stdout, sys.stderr):  # a terminal that lacks a letter shows its number
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    with _noting_interruptions() as interrupted:
        try:
            logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
            logging.getLogger("torch").setLevel(logging.WARNING)  # it tells of its caches when a program ends
            main = importlib.import_module(command).main if isinstance(command, str) else command
            if interrupted:
                raise KeyboardInterrupt
            code = int(main(*args) or 0)
            sys.stdout.flush()
            return code
        except BaseException as error:
            if interrupted or isinstance(error, KeyboardInterrupt):
                sys.stderr.write("interrupted; run the same command again to continue\n")
                return 130
            if (answer := _answer(error)) is None:
                raise
            return answer


@contextlib.contextmanager
def _noting_interruptions() -> Iterator[list[int]]:
    """Ctrl-C raises KeyboardInterrupt as ever, and is noted in a list, since it can be swallowed.

    An extension module that is being loaded does it (PyTorch, while it loads NumPy) and leaves a library in pieces:
    whatever fails later fails because of the interruption. Python itself does it in what it calls when an object goes;
    that is asked for again as soon as the call has ended.
    """
    noted: list[int] = []
    answer, hook = signal.getsignal(signal.SIGINT), sys.unraisablehook
    if not callable(answer) or not hasattr(signal, "setitimer"):  # ignored, as in a shell's background; Windows
        yield noted
        return

    def note(number: int, frame: Any) -> None:
        noted.append(number)
        answer(signal.SIGINT, frame)

    def swallowed(what: Any) -> None:
        if issubclass(what.exc_type, KeyboardInterrupt):
            signal.setitimer(signal.ITIMER_REAL, 0.01)
        else:
            hook(what)

    signal.signal(signal.SIGINT, note)
    alarm = signal.signal(signal.SIGALRM, note)
    sys.unraisablehook = swallowed
    try:
        yield noted
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGINT, answer)
        signal.signal(signal.SIGALRM, alarm)
        sys.unraisablehook = hook


def _answer(error: BaseException) -> int | None:
    """The exit code for what the user can mend, once it is said; None for everything else."""
    if isinstance(error, UserError):
        return _refuse(str(error))
    if isinstance(error, BrokenPipeError):  # of `| head`: nobody reads on
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    if isinstance(error, ImportError) and (reason := _not_importable(error)) is not None:
        return _refuse(reason)
    if isinstance(error, OSError) and error.errno is not None:
        where = f"{error.filename}: " if error.filename is not None else ""
        return _refuse(f"{where}{error.strerror or error}. Mend that, or choose another place, and run it again")
    if isinstance(error, MemoryError | RuntimeError) and is_out_of_memory(error):
        where = "memory of the GPU" if "cuda" in str(error).lower() else "memory"
        return _refuse(
            f"the {where} is not enough: run again with a smaller --batch-size (or fewer --jobs or --workers), or "
            "close what else takes it"
        )
    return None


def _not_importable(error: ImportError) -> str | None:
    """What to do where a library is not there or cannot be loaded; None where it is this program's own fault."""
    if "failed to map segment" in str(error):
        return (
            f"{error}: the memory that this shell or job allows is less than its libraries take. Raise it: `ulimit -v` "
            "shows it in KiB, and 16000000 is enough"
        )
    if isinstance(error, ModuleNotFoundError) and error.name and error.name.split(".")[0] not in ("core", "tests"):
        return (
            f"{sys.executable} has no {error.name.split('.')[0]}: run the Python that has it (after `make install` "
            f".venv/bin/python), or {sys.executable} -m pip install -r requirements.txt"
        )
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out: Python's own, PyTorch's of CUDA, or that of its CPU allocator."""
    said = f"{type(error).__name__} {error}".lower()
    return isinstance(error, MemoryError) or any(part.lower() in said for part in _OUT_OF_MEMORY)


def _refuse(message: str) -> int:
    sys.stderr.write(f"error: {legible(message)}\n")
    return 2


def legible(text: str) -> str:
    """A message as it may go to a terminal: control characters as numbers, endless values cut."""
    text = re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", lambda found: f"\\x{ord(found[0]):02x}", text)
    return re.sub(
        rf"[^\s/]{{{LONGEST + 60},}}",  # a file's name has at most 255 bytes
        lambda found: f"{found[0][: LONGEST - 40]}... ({len(found[0])} characters)",
        text,
    )
