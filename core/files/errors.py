"""One kind of error for everything a user can mend, and the wrapper that prints it without a traceback."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable


class UserError(Exception):
    """Something the user can mend. The message says what went wrong, where we looked, and what fixes it."""


def run_cli(main: Callable[[], int | None]) -> int:
    """Run a command's ``main`` and turn a :class:`UserError` into a message and exit code 2."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        return int(main() or 0)
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; run the same command again to continue\n")
        return 130
