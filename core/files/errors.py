"""One kind of error for everything a user can mend, and the wrapper that prints it without a traceback.

What a user can mend raises :class:`UserError` anywhere; a docstring says so only where there is more to say.
"""

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

_OUT_OF_MEMORY = ("out of memory", "allocate memory", "not enough memory", "bad_alloc", "_alloc_failed")


class UserError(Exception):
    """Something the user can mend. The message says what went wrong, where we looked, and what fixes it."""


def differences(there: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """``key: 1 there, 2 now`` of all that is not alike."""
    pairs = {key: (there.get(key), now.get(key)) for key in sorted({*there, *now})}
    return [f"{key}: {a!r} there, {b!r} now" for key, (a, b) in pairs.items() if a != b]


def first_line(error: BaseException) -> str:
    """What an error says, without the rest of a long story."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__


@contextlib.contextmanager
def library(who: str, package: str) -> Iterator[None]:
    """Around the import of a package that not every installation has; ``who`` needs it."""
    try:
        yield
    except ImportError as error:
        raise UserError(f"{who} needs {package}, which is not installed ({error}): pip install {package}") from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out: Python's own, PyTorch's of CUDA, or that of its CPU allocator."""
    said = f"{type(error).__name__} {error}".lower()
    return isinstance(error, MemoryError) or any(part in said for part in _OUT_OF_MEMORY)


def run_cli(main: Callable[..., int | None], *args: Any) -> int:
    """Run ``main(*args)``; a :class:`UserError`, too little memory and a full disk become a message and exit code 2."""
    for stream in (sys.stdout, sys.stderr):  # a terminal that lacks a letter shows its number
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger("torch").setLevel(logging.WARNING)  # it tells of its caches when a program ends
    try:
        code = int(main(*args) or 0)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; run the same command again to continue\n")
        return 130
    except UserError as error:
        message = str(error)
    except BrokenPipeError:  # of `| head`: nobody reads on
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (OSError, MemoryError, RuntimeError) as error:
        if is_out_of_memory(error):
            where = "memory of the GPU" if "cuda" in str(error).lower() else "memory"
            fewer = "a smaller --image-batch-size or --batch-size, --dtype bfloat16, or fewer --jobs or --workers"
            message = f"the {where} is not enough: run again with {fewer}"
        elif isinstance(error, OSError) and error.errno is not None:
            where = f"{error.filename}: " if error.filename is not None else ""
            message = f"{where}{error.strerror}. Mend that, or choose another place, and run it again"
        else:
            raise
    sys.stderr.write(f"error: {message}\n")
    return 2
