"""What is needed of the operating system, or a sentence that says which ones have it."""

from __future__ import annotations

from core.files.errors import UserError

try:
    import fcntl as fcntl  # handed on
    import resource as resource
except ImportError as error:
    raise UserError(
        "this program runs on Linux and macOS: it needs their file locks and limits of memory, which this system "
        "lacks. On Windows use WSL 2 (wsl --install) or a Linux container"
    ) from error
