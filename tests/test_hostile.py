"""Files from strangers: nothing in them runs, nothing is written elsewhere, and the error names the file."""

from __future__ import annotations

import os
import pickle
import resource
import struct
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import scipy.sparse
from PIL import Image

from core.datasets.xlsa17 import read_mat_files
from core.features.images import load_image
from core.files.atomic import read_json
from core.files.errors import UserError
from core.files.matfile import read_mats
from core.files.pickles import load_array_pickle
from tests.helpers import TOY, toy_mats


class Runs:
    def __init__(self, call, *args):
        self.call = call, args

    def __reduce__(self):
        return self.call


def reduce_of(module: str, name: str, *args: bytes) -> bytes:
    """A pickle that calls module.name(*args)."""
    return b"c" + f"{module}\n{name}\n".encode() + b"(" + b"".join(args) + b"tR."


HOSTILE_PICKLES = {
    "os.system": pickle.dumps(Runs(os.system, "touch OWNED")),
    "eval": pickle.dumps(Runs(eval, "open('OWNED','w')")),
    "Path.touch": pickle.dumps(Runs(Path.touch, Path("OWNED"))),
    "dotted name": b"\x80\x04\x8c\x05numpy\x8c\x0ddtype.__new__\x93.",
    "numpy.load": reduce_of("numpy", "load", b"VOWNED\n"),
    "bytearray of 2**40": b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b".",
    "shape of 2**40": b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntVb\ntR"
    b"(I1\n(L1099511627776L\ntcnumpy\ndtype\n(Vf8\ntRI00\nVx\ntb.",
    "objects": pickle.dumps(np.array([None, {}], dtype=object), protocol=2),
    "text": pickle.dumps(np.array(["a"])),
    "dictionary": pickle.dumps({"a": 1}),
    "empty": b"",
    "page": b"<html>",
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE_PICKLES)
def test_hostile_pickle(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "a.pkl"
    path.write_bytes(HOSTILE_PICKLES[name])
    with pytest.raises(UserError, match=r"a\.pkl"):
        load_array_pickle(path)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_deep_json(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b"[" * 100_000)
    with pytest.raises(UserError, match=r"a\.json is not readable JSON"):
        read_json(path)


def element(kind: int, data: bytes) -> bytes:
    return struct.pack("<II", kind, len(data)) + data + bytes(-len(data) % 8)


def matrix(kind: int, shape: list[int], body: bytes, name: bytes = b"labels") -> bytes:
    head = element(6, struct.pack("<II", kind, 0)) + element(5, struct.pack(f"<{len(shape)}i", *shape))
    return element(14, head + element(1, name) + body)


HEADER = b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack("<H", 0x0100) + b"IM"
HOSTILE_MATS = {
    "absurd numbers": matrix(6, [2**31 - 1, 2**31 - 1], element(9, bytes(8))),
    "struct": matrix(2, [1, 1], b""),
    "longer than the file": struct.pack("<II", 14, 2**31) + bytes(99),
    "v7.3": b"",
}


@pytest.mark.parametrize("name", HOSTILE_MATS)
def test_hostile_mat(tmp_path, name):
    path = tmp_path / "res101.mat"
    header = HEADER if name != "v7.3" else HEADER[:124] + struct.pack("<H", 0x0200) + b"IM"
    path.write_bytes(header + HOSTILE_MATS[name])
    with pytest.raises(UserError, match=r"res101\.mat"):
        read_mats({path: {"labels"}})
    _, splits = toy_mats(tmp_path / "toy")
    with pytest.raises(UserError, match=r"res101\.mat"):
        read_mat_files(path, splits, TOY)


@pytest.mark.parametrize("compress", [True, False])
def test_variables_of_every_kind(tmp_path, compress):
    rng = np.random.default_rng(0)
    content = {kind: rng.integers(0, 99, (3, 4)).astype(kind) for kind in ("u1", "i2", "u4", "i8", "f4", "f8")}
    content |= {"one": 7.0, "empty": np.empty((0, 0)), "word": "Grün", "three": rng.random((2, 3, 4))}
    content |= {"rows": np.array(["ab ", "cde"]), "cell": np.array([["a", 1.5], ["", np.arange(3)]], dtype=object)}
    content |= {"sparse": scipy.sparse.csc_matrix(np.eye(3)), "record": {"a": 1}, "flag": np.array([True, False])}
    scipy.io.savemat(tmp_path / "a.mat", content, do_compression=compress)
    theirs = scipy.io.loadmat(tmp_path / "a.mat")
    (ours,) = read_mats({tmp_path / "a.mat": {*content, "not there"} - {"record"}})
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


@pytest.mark.parametrize("name", ["=cmd|' /C calc'!A0", "@sum", "-1+1", "a\nb", ""])
def test_class_names_that_would_be_formulas(tmp_path, name):
    names = np.array([[n] for n in [name, *"bcdefghi"]], dtype=object)
    with pytest.raises(UserError, match=r"att_splits\.mat: .* is no class name"):
        read_mat_files(*toy_mats(tmp_path, allclasses_names=names), TOY)


def test_a_postscript_program_named_jpg_is_not_started(tmp_path):
    Image.new("RGB", (40, 40)).save(tmp_path / "a.eps")
    os.rename(tmp_path / "a.eps", tmp_path / "a.jpg")
    with pytest.raises(ValueError, match="what is read: JPEG"):
        load_image(tmp_path / "a.jpg", 32)


def test_an_image_bomb_is_refused_before_it_is_decoded(tmp_path):
    path = tmp_path / "a.png"
    Image.new("1", (40, 40)).save(path)
    load_image(path, 32)  # libraries are loaded now
    Image.new("1", (20_000, 20_000)).save(path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match="pixels"):
        load_image(path, 32)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10  # KiB


def test_a_pipe_or_device_as_image_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "a.jpg")
    (tmp_path / "b.jpg").symlink_to("/dev/zero")
    for name in ("a.jpg", "b.jpg"):
        with pytest.raises(ValueError, match="not a file"):
            load_image(tmp_path / name, 32)
