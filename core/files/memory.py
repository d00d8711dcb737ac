"""How this process keeps its memory."""

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # names of mallopt's settings in malloc.h
_LARGE = 1 << 30  # bytes; no activation of a batch is larger
_OLD_LIMIT = 32 << 20  # bytes; glibc before 2.35 takes no higher threshold


def keep_memory() -> bool:
    """Have glibc keep large pieces of memory that were freed, for the next ones; whether it does.

    Otherwise each activation of a forward pass gets fresh pages from the system and gives them back, and the page
    faults take a good part of the time on a processor. Nothing is changed where the C library is another one.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:  # not glibc
        return False
    taken = mallopt(_MMAP_THRESHOLD, _LARGE) or mallopt(_MMAP_THRESHOLD, _OLD_LIMIT)
    return bool(taken and mallopt(_TRIM_THRESHOLD, _LARGE))
