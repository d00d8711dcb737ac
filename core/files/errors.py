"""One kind of error for everything a user can mend, and the wrapper that prints it without a traceback."""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Callable
from typing import Any


class UserError(Exception):
    """Something the user can mend. The message says what went wrong, where we looked, and what fixes it."""


def run_cli(command: str | Callable[..., int | None], *args: Any) -> int:
    """Run a command and turn a :class:`UserError` into a message and exit code 2.

    Args:
        command: a module with a function ``main(*args)``, imported here so that an interruption of the import is one
            line too; or the function itself.
    """
    for stream in (sys.stdout, sys.stderr):  # a terminal that lacks a letter shows its number
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        main = importlib.import_module(command).main if isinstance(command, str) else command
        return int(main(*args) or 0)
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; run the same command again to continue\n")
        return 130
