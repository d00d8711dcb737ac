"""Files from strangers are read in a child process with limits of memory and time; plain data come back.

Whatever a file does to a parser (it asks for a terabyte, never ends, crashes the library) ends that process only. The
child runs this program's own functions; nothing in a file is run.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import os
import re
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from core.files.errors import UserError, is_out_of_memory
from core.files.kinds import unreadable
from core.files.system import resource

_ANSWER_LIMIT = 1 << 30  # bytes of arrays
# of the clock, for others may have the processors: ten times the processor's seconds, at most ten minutes more
_PATIENCE, _MORE = 10, 600
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")  # starts faster


def call(
    function: str, *arguments: Any, kind: str, timeout: float = 60, memory: int = 4 << 30, written: int = 0
) -> Any:
    """``function`` ("package.module:name") of ``arguments``, run in a child process.

    Args:
        arguments: what JSON can hold; the first is the path, or the list of paths, that errors name.
        kind: what the file should be, such as "MATLAB file".
        timeout: seconds of the processor's time; of the clock's up to ten times as many.
        memory: bytes of address space, beyond what the function's own module takes.
        written: bytes of the largest file it may write; for what arrays cannot hold, in a folder of the caller.

    Returns:
        What the function returned: lists, dicts, str, numbers, and numpy arrays of numbers.

    Raises:
        UserError: that of the function; or it failed, crashed, took too long or asked for too much memory.
    """
    named = arguments[0] if isinstance(arguments[0], list) else [arguments[0]]
    where = f"{' and '.join(map(str, named))}, read as {kind}," if len(named) > 1 else f"{named[0]}, read as a {kind},"
    try:
        request = json.dumps([function, arguments, memory, timeout, written]).encode()
        code, answer, log = run(request, min(_PATIENCE * timeout, timeout + _MORE))
    except subprocess.TimeoutExpired:
        code = -signal.SIGXCPU
    if code == -signal.SIGXCPU:
        raise UserError(f"{where} takes more than {timeout:g} s (a hang), which no intact one does")
    if code == -signal.SIGKILL:
        raise UserError(f"{where} was too much: the reading process was killed, as happens when memory runs out")
    if code < 0:
        raise UserError(f"{where} made the reading process crash ({signal.Signals(-code).name}); is the file damaged?")
    if code or len(answer) < 8:
        last = log.decode("utf-8", "replace").strip().split("\n")[-1]
        raise UserError(f"{where} made the reading process crash (exit code {code}) {last[:500]}")
    reply = _decode(answer)
    if "refused" in reply:
        raise UserError(reply["refused"])
    if "memory" in reply:
        raise UserError(f"{where} asks for more memory than the {memory >> 20} MiB that any intact one needs")
    if "failed" in reply:
        raise unreadable(named[0], kind, reply["failed"])
    return reply["value"]


def run(request: bytes, timeout: float) -> tuple[int, bytes, bytes]:
    """Start the child and wait for it: its exit code (negative for a signal), its answer, its log."""
    modules = [str(Path(__file__).resolve().parents[2]), *filter(None, sys.path)]  # this clone's core first
    done = subprocess.run(
        [sys.executable, "-P", "-c", "from core.files.sandbox import child; child()"],
        env={**os.environ, **_ONE_THREAD, "PYTHONPATH": os.pathsep.join(modules), "PYTHONUTF8": "1"},
        input=request,
        capture_output=True,
        timeout=timeout,
    )
    return done.returncode, done.stdout, done.stderr


def child() -> None:
    function, arguments, memory, timeout, written = json.load(sys.stdin)
    importlib.import_module(function.split(":")[0])  # this program's own: its libraries may be larger than any file
    limits = {"CORE": 0, "FSIZE": written, "CPU": int(timeout) + 1, "AS": memory + _mapped()}
    for name, limit in limits.items():
        with contextlib.suppress(ValueError, OSError):  # where there is no such limit, or a lower one
            number = getattr(resource, f"RLIMIT_{name}")
            resource.setrlimit(number, (limit, resource.getrlimit(number)[1]))
    with open(os.dup(1), "wb") as out:
        os.dup2(2, 1)  # what a library prints is no part of the answer
        out.writelines(answer_to(function, arguments))


def _mapped() -> int:
    """Bytes of address space that this process has; 0 where the system does not say."""
    with contextlib.suppress(OSError, ValueError):
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    return 0


def answer_to(function: str, arguments: list[Any]) -> Iterator[bytes | memoryview]:
    """The answer in pieces: length of the header, header (JSON), the arrays' bytes in the order of their mention."""
    module, name = function.split(":")
    called = getattr(importlib.import_module(module), name)  # a failure here is this program's: a traceback
    arrays: list[memoryview] = []

    def pack(value: Any) -> Any:
        import numpy as np

        if isinstance(value, np.generic):
            return value.item()
        if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
            arrays.append(np.ascontiguousarray(value).reshape(-1).view("u1").data)
            return {"__array__": [value.dtype.str, value.shape]}
        raise TypeError(f"{type(value).__name__} in place of plain data")

    try:
        header = json.dumps({"value": called(*arguments)}, default=pack).encode()
        if len(header) + sum(map(len, arrays)) > _ANSWER_LIMIT:
            raise MemoryError
    except Exception as error:
        arrays.clear()
        header = json.dumps(_reason(error)).encode()
    yield struct.pack("<Q", len(header))
    yield header
    yield from arrays


def _reason(error: Exception) -> dict[str, str]:
    cause: BaseException | None = error
    while cause is not None:
        if is_out_of_memory(cause):
            return {"memory": ""}
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, OSError) and error.filename:
        return {"refused": f"cannot read {error.filename}: {error.strerror}"}
    return {"refused": str(error)} if isinstance(error, UserError) else {"failed": f"{type(error).__name__}: {error}"}


def _decode(content: bytes) -> Any:
    start = 8 + struct.unpack_from("<Q", content)[0]
    at = start

    def unpack(value: dict[str, Any]) -> Any:
        nonlocal at
        if "__array__" not in value:
            return value
        import numpy as np

        code, shape = value["__array__"]
        if not re.fullmatch(r"[<>|][biuf]\d\d?", code):
            raise ValueError(f"an array of type {code}")
        array = np.frombuffer(content, code, math.prod(shape), at).reshape(shape).copy()
        at += array.nbytes
        return array

    return json.loads(content[8:start], object_hook=unpack)
