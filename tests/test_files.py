"""Atomic files, the sandbox, and the allow-list unpickler."""

import os
import pickle
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from core.files import kinds, sandbox
from core.files.atomic import atomic_path, write_bytes
from core.files.errors import UserError, run_cli
from core.files.pickles import load_array_pickle


def test_failed_write_leaves_the_old_file_and_no_rubbish(tmp_path):
    path = tmp_path / "f"
    write_bytes(path, b"old")

    def fails():
        with atomic_path(path) as temporary:
            temporary.write_bytes(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fails()
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


@pytest.mark.parametrize("protocol", range(6))
def test_plain_arrays_load(tmp_path, protocol):
    array = np.arange(12.0).reshape(3, 4)
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(array, protocol=protocol))
    np.testing.assert_array_equal(load_array_pickle(tmp_path / "a.pkl"), array)


class Hostile:
    def __reduce__(self):
        import os

        return os.system, ("touch SHOULD_NOT_EXIST",)


@pytest.mark.parametrize("content", [pickle.dumps(Hostile()), pickle.dumps({"a": 1}), b"", b"\x80\x04", b"<html>"])
def test_anything_else_is_refused(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.pkl").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.pkl"):
        load_array_pickle(tmp_path / "a.pkl")
    assert not (tmp_path / "SHOULD_NOT_EXIST").exists()


pytestmark = pytest.mark.usefixtures("real_child")

# Functions that the sandbox runs here.


def give_back(path, *rest):
    return {"path": path, "rest": rest, "arrays": [np.arange(3, dtype=">i2"), np.ones((2, 0, 3), "f4"), np.eye(2) > 0]}


def misbehave(path, how):
    if how == "memory":
        return bytes(3 << 30).hex()[:1]
    if how == "answer":
        return np.zeros(3 << 26)
    if how == "write":
        Path("elsewhere").write_text("x")
    if how == "hang":
        while True:
            pass
    if how == "sleep":
        time.sleep(60)
    if how == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if how == "exit":
        os._exit(3)
    if how == "object":
        return np.array([None], dtype=object)
    if how == "user":
        raise UserError(f"{path}: mend it")
    if how == "wrapped":
        try:
            raise MemoryError
        except MemoryError as error:
            raise ValueError("a library's words") from error
    raise ValueError("no such thing")


def wait(path, seconds):
    time.sleep(seconds)
    return seconds


def environment(path):
    from core.files import errors

    os.write(1, b"not part of the answer")
    limits = [resource.getrlimit(n)[0] for n in (resource.RLIMIT_CORE, resource.RLIMIT_AS, resource.RLIMIT_CPU)]
    return {"core": errors.__file__, "torch": "torch" in sys.modules, "limits": limits}


def test_the_sandbox_hands_back_plain_data():
    got = sandbox.call("tests.test_files:give_back", "ä\udc80", [1, None], {"a": 0.5}, kind="thing")
    assert got["path"] == "ä\udc80" and got["rest"] == [[1, None], {"a": 0.5}]
    for array, expected in zip(got["arrays"], give_back("")["arrays"], strict=True):
        assert array.dtype == expected.dtype and array.flags.writeable and array.flags.aligned
        np.testing.assert_array_equal(array, expected)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("memory", "more memory than the 2048 MiB"),
        ("wrapped", "more memory than"),
        ("answer", "more memory than"),
        ("write", "not a readable thing .OSError.*File too large"),
        ("hang", "more than 1 s"),
        ("sleep", "more than 1 s"),
        ("crash", "crash .SIGSEGV"),
        ("exit", "exit code 3"),
        ("object", "readable thing.*ndarray in place of plain data"),
        ("user", "^a.b: mend it$"),
        ("other", "not a readable thing.*ValueError: no such thing"),
    ],
)
def test_what_goes_wrong_in_the_sandbox_names_the_file(tmp_path, monkeypatch, how, message):
    monkeypatch.chdir(tmp_path)
    seconds = 1 if how in ("hang", "sleep") else 60
    with pytest.raises(UserError, match=message) as info:
        sandbox.call("tests.test_files:misbehave", "a.b", how, kind="thing", timeout=seconds, memory=2 << 30)
    assert "a.b" in str(info.value) and "delete" not in str(info.value)


def test_a_child_that_waits_for_a_processor_does_not_hang(monkeypatch):
    monkeypatch.setattr(sandbox, "_PATIENCE", 60)
    assert sandbox.call("tests.test_files:wait", "a.b", 1.5, kind="thing", timeout=1) == 1.5  # seconds of the clock


def test_the_sandbox_runs_this_core_with_limits_and_without_torch(tmp_path, monkeypatch):
    (tmp_path / "core").mkdir()  # another core, in the working directory and first in the child's environment
    (tmp_path / "core" / "__init__.py").write_text("raise SystemExit(9)")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(sys, "path", ["", str(tmp_path), *sys.path])
    got = sandbox.call("tests.test_files:environment", "a", kind="thing", memory=1 << 30, timeout=9)
    root = Path(__file__).parent.parent
    space = got["limits"].pop(1)  # and what the function's own module takes
    assert got == {"core": str(root / "core/files/errors.py"), "torch": False, "limits": [0, 10]}
    assert 1 << 30 < space < 4 << 30


def test_the_sandbox_answers_threads_and_programs_from_standard_input(tmp_path):
    """As a notebook's kernel is one: no file of its own, and several threads."""
    program = (
        "import threading; from core.files import sandbox; got = []\n"
        "def ask(): got.append(sandbox.call('tests.test_files:give_back', 'p', kind='thing')['path'])\n"
        "threads = [threading.Thread(target=ask) for _ in range(2)]\n"
        "[t.start() for t in threads]; [t.join() for t in threads]; assert got == ['p', 'p']\n"
    )
    root = str(Path(__file__).parent.parent)
    subprocess.run(
        [sys.executable], input=program, text=True, check=True, cwd=root, env={**os.environ, "PYTHONPATH": root}
    )


FILES = {
    b"version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 9\n": "Git LFS pointer.*git lfs pull",
    b"\n <!DOCTYPE html><html>": "web page",
    b"\xef\xbb\xbf<HTML>": "web page",
    b"<?xml version='1.0'?><Error>": "XML",
    b"": "empty",
    bytes(99): "zeros",
    b"PK\x03\x04" + bytes(9): "zip archive",
    b"PK\x03\x04" + bytes(26) + b"archive/data.pkl": "PyTorch",
    b"\x1f\x8b\x08": "gzip",
    bytes(257).replace(b"\0", b"a") + b"ustar": "tar archive",
    b"\x89HDF\r\n\x1a\n": "HDF5",
    b"%PDF-1.4": "PDF",
}


@pytest.mark.parametrize("content", FILES)
def test_files_are_named_for_what_they_are(tmp_path, content):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(UserError, match=rf"a is not a readable thing: it is .*{FILES[content]}"):
        raise kinds.unreadable(tmp_path / "a", "thing", "detail")
    (tmp_path / "a").write_bytes(b"something else")
    assert not kinds.what_it_is(tmp_path / "a") and not kinds.what_it_is(tmp_path / "none")
    assert "detail" in str(kinds.unreadable(tmp_path / "a", "thing", "detail"))


def test_a_pickle_of_python_2_loads(tmp_path):
    body = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n(I2\ntcnumpy\ndtype\n"
    body += b"(S'f4'\nI0\nI1\ntR(I3\nS'<'\nNNNI-1\nI-1\nI0\ntbI00\nS'\\x00\\x00\\x80?\\x00\\x00\\x80\\xff'\ntb."
    (tmp_path / "a.pkl").write_bytes(body)
    got = load_array_pickle(tmp_path / "a.pkl")
    assert got.dtype == np.float32 and got.tolist() == [1.0, -np.inf]


def test_user_errors_become_messages(capsys):
    def fails():
        raise UserError("no data; run: python x.py")

    assert run_cli(fails) == 2
    assert capsys.readouterr().err == "error: no data; run: python x.py\n"
