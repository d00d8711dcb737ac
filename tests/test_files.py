"""Atomic files and the allow-list unpickler."""

import pickle

import numpy as np
import pytest

from core.files.atomic import atomic_path, load_array_pickle, write_bytes
from core.files.errors import UserError, run_cli


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


def test_user_errors_become_messages(capsys):
    def fails():
        raise UserError("no data; run: python x.py")

    assert run_cli(fails) == 2
    assert capsys.readouterr().err == "error: no data; run: python x.py\n"
