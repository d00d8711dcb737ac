"""Files from strangers: nothing in them runs, and the error names the file. (Weights: test_weights; archives:
test_download; images: test_faults_images.)"""

from __future__ import annotations

import os
import pickle
import struct

import numpy as np
import pytest
import scipy.io
import scipy.sparse

from core.files.errors import UserError
from core.files.matfile import read_mats
from core.files.pickles import load_array_pickle


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


def element(kind: int, data: bytes) -> bytes:
    return struct.pack("<II", kind, len(data)) + data + bytes(-len(data) % 8)


def test_a_mat_file_of_absurd_size(tmp_path):
    shape = element(6, struct.pack("<II", 6, 0)) + element(5, struct.pack("<2i", 2**31 - 1, 2**31 - 1))
    header = b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack("<H", 0x0100) + b"IM"
    (tmp_path / "res101.mat").write_bytes(header + element(14, shape + element(1, b"labels") + element(9, bytes(8))))
    with pytest.raises(UserError, match=r"res101\.mat"):
        read_mats({tmp_path / "res101.mat": {"labels"}})


@pytest.mark.parametrize("compress", [True, False])
def test_variables_of_every_kind(tmp_path, compress):
    rng = np.random.default_rng(0)
    content = {kind: rng.integers(0, 99, (3, 4)).astype(kind) for kind in ("u1", "i2", "u4", "i8", "f4", "f8")}
    content |= {"one": 7.0, "empty": np.empty((0, 0)), "word": "Grün", "three": rng.random((2, 3, 4))}
    content |= {"rows": np.array(["ab ", "cde"]), "cell": np.array([["a", 1.5], ["", np.arange(3)]], dtype=object)}
    content |= {"sparse": scipy.sparse.csc_matrix(np.eye(3)), "record": {"a": 1}, "flag": np.array([True, False])}
    scipy.io.savemat(tmp_path / "a.mat", content, do_compression=compress)
    theirs = scipy.io.loadmat(tmp_path / "a.mat")
    (ours,) = read_mats({tmp_path / "a.mat": {*content, "not there"} - {"record"}})  # nobody asks for what is not read
    assert set(ours) == {*content} - {"record"}
    assert ours["word"] == ["Grün"] and ours["rows"] == ["ab ", "cde"]
    np.testing.assert_array_equal(ours["sparse"], np.eye(3))
    for key in {*ours} - {"word", "rows", "cell", "sparse"}:
        np.testing.assert_array_equal(ours[key], theirs[key])
    first, number, empty, array = ours["cell"]
    assert first == ["a"] and number == 1.5 and empty == []
    np.testing.assert_array_equal(array, [[0, 1, 2]])
    with pytest.raises(UserError, match="record is a MATLAB struct"):
        read_mats({tmp_path / "a.mat": ["record"]})
