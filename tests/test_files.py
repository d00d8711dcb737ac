"""Atomic files, locks, and what others wrote: pickles, of which nothing runs, and MATLAB files."""

import os
import pickle
import subprocess
import sys
import time

import numpy as np
import pytest
import scipy.io
import scipy.sparse

from core.files import kinds
from core.files.atomic import Lock, is_locked, write_bytes
from core.files.errors import UserError
from core.files.matfile import read_mat
from core.files.pickles import load_array_pickle


def test_what_a_killed_process_left_is_swept_and_what_is_being_written_is_not(tmp_path):
    for name, age in ((".f.1.tmp", 9999), (".f.2.tmp", 0), (".f.x.tmp", 9999)):
        (tmp_path / name).write_bytes(b"half")
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    write_bytes(tmp_path / "f", b"1")
    assert sorted(p.name for p in tmp_path.iterdir()) == [".f.2.tmp", ".f.x.tmp", "f"]


def test_a_lock_refuses_a_second_process_and_ends_with_a_killed_one(tmp_path):
    program = "import sys, pathlib, time; from core.files.atomic import Lock\n"
    program += "lock = Lock(pathlib.Path(sys.argv[1])); print('held', flush=True); time.sleep(60)"
    path = tmp_path / "f"
    child = subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout.readline() == "held\n" and is_locked(path)
        with pytest.raises(UserError, match="another process is writing"):
            Lock(path)
    finally:
        child.kill()
        child.wait()
    assert (tmp_path / "f.lock").exists() and not is_locked(path)
    with Lock(path):
        with pytest.raises(UserError, match="another process"):  # nor twice in one
            Lock(path)
        assert is_locked(path)
    assert not is_locked(path) and not list(tmp_path.iterdir())


def test_plain_arrays_load_of_every_protocol_and_of_python_2(tmp_path):
    path, array = tmp_path / "a.pkl", np.arange(12.0).reshape(3, 4)
    for protocol in range(6):
        path.write_bytes(pickle.dumps(array, protocol=protocol))
        np.testing.assert_array_equal(load_array_pickle(path), array)
    body = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n(I2\ntcnumpy\ndtype\n"
    body += b"(S'f4'\nI0\nI1\ntR(I3\nS'<'\nNNNI-1\nI-1\nI0\ntbI00\nS'\\x00\\x00\\x80?\\x00\\x00\\x80\\xff'\ntb."
    path.write_bytes(body)
    got = load_array_pickle(path)
    assert got.dtype == np.float32 and got.tolist() == [1.0, -np.inf]


def test_what_a_download_gives_in_place_of_a_file_is_named(tmp_path):
    path = tmp_path / "a"
    for content, said in (
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 9\n", "Git LFS pointer.*git lfs pull"),
        (b"\n <!DOCTYPE html><html>", "web page"),
        (b"", "empty"),
    ):
        path.write_bytes(content)
        with pytest.raises(UserError, match=rf"a is not a readable thing: it is .*{said}"):
            raise kinds.unreadable(path, "thing", "detail")
    path.write_bytes(b"something else")
    assert not kinds.what_it_is(path) and "detail" in str(kinds.unreadable(path, "thing", "detail"))


class Runs:
    def __reduce__(self):
        return os.system, ("touch OWNED",)


@pytest.mark.parametrize(
    "content",
    [
        pickle.dumps(Runs()),
        b"\x80\x04\x8c\x05numpy\x8c\x0ddtype.__new__\x93.",  # a dotted name
        b"cnumpy\nload\n(VOWNED\ntR.",  # what numpy has besides arrays
        pickle.dumps(np.array([None, {}], dtype=object), protocol=2),
    ],
)
def test_hostile_pickle(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.pkl").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.pkl"):
        load_array_pickle(tmp_path / "a.pkl")
    assert [p.name for p in tmp_path.iterdir()] == ["a.pkl"]


def test_matlab_variables_of_every_kind(tmp_path):
    rng = np.random.default_rng(0)
    content = {kind: rng.integers(0, 99, (3, 4)).astype(kind) for kind in ("u1", "i2", "u4", "i8", "f4", "f8")}
    content |= {"one": 7.0, "empty": np.empty((0, 0)), "word": "Grün", "three": rng.random((2, 3, 4))}
    content |= {"rows": np.array(["ab ", "cde"]), "cell": np.array([["a", 1.5], ["", np.arange(3)]], dtype=object)}
    content |= {"sparse": scipy.sparse.csc_matrix(np.eye(3)), "flag": np.array([True, False])}
    scipy.io.savemat(tmp_path / "a.mat", content)
    theirs = scipy.io.loadmat(tmp_path / "a.mat")
    ours = read_mat(tmp_path / "a.mat", [*content, "not there"])
    assert set(ours) == {*content}
    assert ours["word"] == "Grün" and ours["rows"] == ["ab ", "cde"]
    np.testing.assert_array_equal(ours["sparse"], np.eye(3))
    for key in {*ours} - {"word", "rows", "cell", "sparse"}:
        np.testing.assert_array_equal(ours[key], theirs[key])
    first, number, empty, array = ours["cell"]
    assert first == "a" and number == 1.5 and empty == ""
    np.testing.assert_array_equal(array, [[0, 1, 2]])
