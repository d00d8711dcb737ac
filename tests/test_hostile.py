"""Files from strangers: nothing in them runs, nothing is written elsewhere, memory stays bounded."""

from __future__ import annotations

import io
import os
import pickle
import resource
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import scipy.io
import scipy.sparse
import torch
from PIL import Image

from core.datasets.names import read_names_file
from core.datasets.vectors import load_words
from core.datasets.xlsa17 import read_mat_files
from core.features.backbones import build_backbone
from core.features.finetuned import finetuned_record
from core.features.images import load_image
from core.features.weights import read_state
from core.files.atomic import read_json
from core.files.errors import UserError
from core.files.matfile import read_mats
from core.files.pickles import load_array_pickle
from tests.helpers import TOY, toy_mats

ROOT = Path(__file__).parent.parent


class Runs:
    def __init__(self, call, *args):
        self.call = call, args

    def __reduce__(self):
        return self.call


def reduce_of(module: str, name: str, *args: bytes) -> bytes:
    """A pickle that calls module.name(*args)."""
    return b"c" + f"{module}\n{name}\n".encode() + b"(" + b"".join(args) + b"tR."


BIG = struct.pack("<Q", 1 << 40)
HOSTILE_PICKLES = {
    "os.system": pickle.dumps(Runs(os.system, "touch OWNED")),
    "eval": pickle.dumps(Runs(eval, "open('OWNED','w')")),
    "Path.touch": pickle.dumps(Runs(Path.touch, Path("OWNED"))),
    "dotted name": b"\x80\x04\x8c\x05numpy\x8c\x0ddtype.__new__\x93.",
    "numpy.load": reduce_of("numpy", "load", b"VOWNED\n"),
    "memo of 2**31": b"\x80\x02Nr\xff\xff\xff\x7f.",
    "bytearray of 2**40": b"\x80\x05\x96" + BIG + b".",
    "bytes of 2**40": b"\x80\x04\x8e" + BIG + b".",
    "frame of 2**40": b"\x80\x04\x95" + BIG + b"N.",
    "ndarray of 2**40": reduce_of("numpy", "ndarray", b"(L1099511627776L\ntVf8\n"),
    "shape of 2**40": b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntVb\ntR"
    b"(I1\n(L1099511627776L\ntcnumpy\ndtype\n(Vf8\ntRI00\nVx\ntb.",
    "amplified text": b"(" + b"c_codecs\nencode\np0\nV" + b"a" * (1 << 20) + b"\np1\nVlatin1\np2\n"
    + b"g0\n(g1\ng2\ntR" * 999 + b"t.",
    "objects": pickle.dumps(np.array([None, {}], dtype=object), protocol=2),
    "text": pickle.dumps(np.array(["a"])),
    "stand-in changed": reduce_of("numpy", "dtype", b"Vf4\n")[:-1] + b"(dV_name\nV8f\nsb.",
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE_PICKLES)
@pytest.mark.parametrize("kind", ["pkl", "kv"])
def test_hostile_pickle(tmp_path, monkeypatch, name, kind, small_memory):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / f"a.{kind}"
    path.write_bytes(HOSTILE_PICKLES[name])
    with pytest.raises(UserError, match=rf"a\.{kind}"):
        load_array_pickle(path) if kind == "pkl" else load_words(str(path), ["red"])
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_weights_with_code_run_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for zipped in (True, False):
        bad = {"features.0.weight": Runs(os.system, "touch OWNED")}
        torch.save(bad, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
        with pytest.raises(UserError, match=r"w\.pth is not a readable weights file"):
            build_backbone("squeezenet1_1", tmp_path / "w.pth")
    assert [p.name for p in tmp_path.iterdir()] == ["w.pth"]


def test_weights_that_ask_for_memory_are_refused(tmp_path, no_child, small_memory):
    path, good = tmp_path / "w.pth", io.BytesIO()
    torch.save({"a": torch.zeros(1 << 16)}, good)
    call = b"\x80\x02cbuiltins\nbytearray\n(J\0\0\0\x40tR."
    with zipfile.ZipFile(good) as old:
        parts = {name: old.read(name) for name in old.namelist()}
    for how, change in {"asks": {"archive/data.pkl": call}, "compressed": {}, "overlap": {}}.items():
        packing = zipfile.ZIP_DEFLATED if how == "compressed" else zipfile.ZIP_STORED
        with zipfile.ZipFile(path, "w", packing) as new:
            for name, content in (parts | change).items():
                new.writestr(name, content)
            if how == "overlap":  # a second name for the same bytes
                new.filelist += [entry for entry in new.filelist if entry.filename.endswith("data/0")]
        with pytest.raises(UserError, match=how):
            build_backbone("squeezenet1_1", path)
    path.write_bytes(call)
    with pytest.raises(UserError, match="asks for builtins bytearray"):
        build_backbone("squeezenet1_1", path)


def test_weights_that_are_not_plain_numbers_are_refused(tmp_path, no_child):
    path = tmp_path / "w.pth"
    state = build_backbone("squeezenet1_1", "random").network.state_dict()
    name, bias = next((k, v) for k, v in state.items() if k.endswith("bias"))
    for kind in (bias.to_sparse(), bias.to("meta"), bias.to(torch.complex64)):
        torch.save({**state, name: kind}, path)
        with pytest.raises(UserError, match=f"sparse.* in {name}"):
            build_backbone("squeezenet1_1", path)
    torch.save({**state, name: bias.double() + 1e300}, path)
    with pytest.raises(UserError, match=f"infinity in {name}"):
        build_backbone("squeezenet1_1", path)
    for zipped in (True, False):
        torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}, "epoch": 3}, path,
                   _use_new_zipfile_serialization=zipped)  # fmt: skip
        assert torch.equal(build_backbone("squeezenet1_1", path).network.state_dict()[name], bias)


def test_weights_are_read_in_a_child_and_come_back_as_they_were(tmp_path, small_memory, real_child):
    """Below a folder whose name is not UTF-8, too, which safetensors does not open by itself."""
    place = tmp_path / os.fsdecode(b"caf\xe9")
    place.mkdir()
    path, t = place / "w.pth", torch.randn(5, 7)
    state = {"t": t, "turned": t.T, "half": t.bfloat16(), "one": torch.tensor(3), "none": torch.zeros(0, 3), "same": t}
    odd = {"sparse": t.to_sparse(), "complex": t.to(torch.complex64), "meta": torch.empty(1 << 40, device="meta")}
    torch.save({"epoch": 3, "state_dict": state | odd}, path)
    read = read_state(path)
    assert list(read) == [*state, *odd]
    assert all(torch.equal(read[k], v) and read[k].dtype == v.dtype for k, v in state.items())
    assert all(read[k].device.type == "meta" and read[k].shape == v.shape for k, v in odd.items())
    safetensors.torch.save_file({"t": t}, tmp_path / "w.safetensors")
    (tmp_path / "w.safetensors").rename(place / "w.safetensors")
    assert torch.equal(read_state(place / "w.safetensors")["t"], t) and finetuned_record(place / "w.safetensors") == {}


def test_weights_that_are_more_than_their_file_end_the_child_alone(tmp_path, monkeypatch, small_memory, real_child):
    path = tmp_path / "w.pth"
    torch.save({"a": torch.zeros(1).expand(1 << 40)}, path)
    with pytest.raises(UserError, match=r"w\.pth .*repeat the same numbers"):
        read_state(path)
    torch.save({"a": torch.zeros(1 << 20)}, path)
    monkeypatch.setattr("core.features.weights._CHILD_SPARE", -(16 << 20))  # as of a file that asks for more
    with pytest.raises(UserError, match=r"w\.pth, read as a weights file, (asks for more memory|made the reading)"):
        read_state(path)


def test_what_pytorch_advises_of_a_foreign_pickle_is_not_handed_on(tmp_path, no_child):
    """Its text says to load the file with weights_only=False, which runs what the file likes."""
    path = tmp_path / "w.pth"
    path.write_bytes(b"\x80\x02" + reduce_of("collections", "Counter", b"L5L\n"))
    with pytest.raises(UserError) as said:
        read_state(path)
    assert "weights_only" not in str(said.value) and len(str(said.value)) < 300


def test_long_and_deep_json(tmp_path, small_memory):
    path = tmp_path / "a.json"
    path.write_bytes(b"[" * 100_000)
    with pytest.raises(UserError, match=r"a\.json is not readable JSON"):
        read_json(path)
    with open(path, "wb") as handle:
        handle.truncate(1 << 30)  # one line of a gigabyte
    with pytest.raises(UserError, match="1073741824 bytes"):
        read_json(path)
    (tmp_path / "names.txt").symlink_to(path)
    with pytest.raises(UserError, match=r"names\.txt"):
        read_names_file(tmp_path / "names.txt")


def test_word_vectors_whose_header_promises_too_much(tmp_path, small_memory):
    for name in ("v.txt", "v.bin"):
        (tmp_path / name).write_bytes(b"9000000000 300\nred " + b"1 " * 300)
        with pytest.raises(UserError, match="truncated"):
            load_words(str(tmp_path / name), ["red"])


def element(kind: int, data: bytes) -> bytes:
    return struct.pack("<II", kind, len(data)) + data + bytes(-len(data) % 8)


def matrix(kind: int, shape: list[int], body: bytes, name: bytes = b"labels") -> bytes:
    head = element(6, struct.pack("<II", kind, 0)) + element(5, struct.pack(f"<{len(shape)}i", *shape))
    return element(14, head + element(1, name) + body)


def deep(levels: int) -> bytes:
    body = matrix(6, [1, 1], element(9, bytes(8)), b"")
    for _ in range(levels):
        body = matrix(1, [1, 1], body, b"labels")
    return body


HEADER = b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack("<H", 0x0100) + b"IM"
BOMB = zlib.compress(matrix(6, [1, 1 << 25], element(9, bytes(1 << 28))))
HOSTILE_MATS = {
    "absurd numbers": matrix(6, [2**31 - 1, 2**31 - 1], element(9, bytes(8))),
    "absurd cell": matrix(1, [2**31 - 1, 2**31 - 1], b""),
    "many cells": matrix(1, [1, 10**6], bytes(8) * 99),
    "deep": deep(2000),
    "negative": matrix(6, [-1, -8], element(9, bytes(64))),
    "struct": matrix(2, [1, 1], b""),
    "complex": element(14, element(6, struct.pack("<II", 0x0806, 0)) + matrix(6, [1, 1], element(9, bytes(8)))[24:]),
    "bomb": element(15, BOMB)[: 8 + len(BOMB)],
    "longer than the file": struct.pack("<II", 14, 2**31) + bytes(99),
    "twice": matrix(6, [1, 1], element(9, bytes(8))) * 2,
    "lone surrogate": matrix(4, [1, 1], element(4, b"\x00\xd8")),
    "v7.3": b"",
}


@pytest.mark.parametrize("name", HOSTILE_MATS)
def test_hostile_mat(tmp_path, name, small_memory):
    path = tmp_path / "res101.mat"
    header = HEADER if name != "v7.3" else HEADER[:124] + struct.pack("<H", 0x0200) + b"IM"
    path.write_bytes(header + HOSTILE_MATS[name])
    if name not in ("deep", "lone surrogate"):  # which are labels of a kind that xlsa17 refuses
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


def test_a_large_variable_that_nobody_asked_for_is_passed_over(tmp_path, small_memory):
    path = tmp_path / "a.mat"
    path.write_bytes(HEADER + HOSTILE_MATS["bomb"] + matrix(6, [1, 1], element(9, struct.pack("<d", 5)), b"x"))
    assert read_mats({path: {"x"}}) == [{"x": 5}]


@pytest.mark.parametrize("name", ["=cmd|' /C calc'!A0", "@sum", "-1+1", "a\nb", ""])
def test_class_names_that_would_be_formulas(tmp_path, name):
    names = np.array([[n] for n in [name, *"bcdefghi"]], dtype=object)
    with pytest.raises(UserError, match=r"att_splits\.mat: .* is no class name"):
        read_mat_files(*toy_mats(tmp_path, allclasses_names=names), TOY)


def test_a_postscript_program_named_jpg_is_not_started(tmp_path):
    Image.new("RGB", (40, 40)).save(tmp_path / "a.eps")
    os.rename(tmp_path / "a.eps", tmp_path / "a.jpg")
    with pytest.raises(ValueError, match="it is a PostScript file"):
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


def test_the_fuzzer_runs_and_notices_crashes_and_hangs(tmp_path):
    """A few inputs for each reader (thousands are run by hand), and readers that must be findings.

    Not the first ten: one of them hangs the HDF5 library until its limit of time.
    """
    command = [sys.executable, "fuzz/fuzz_readers.py", "--start", "10", "--inputs", "10", "--findings", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("'findings': 0") == 22
    broken = (
        "import os, signal, time; from pathlib import Path; import fuzz.fuzz_readers as F; F.SECONDS = 1\n"
        "bad = [lambda p, c: 1 / 0, lambda p, c: os.kill(os.getpid(), signal.SIGSEGV), lambda p, c: time.sleep(9),\n"
        "       lambda p, c: bytes(1 << 32), lambda p, c: os._exit(3)]\n"
        "for i, read in enumerate(bad):\n"
        f"    folder = Path({str(tmp_path)!r}, str(i)); folder.mkdir()\n"
        "    counts, found = F.fuzz(F.Target([b'abc'], read, '.x'), 'x', 0, range(2), folder)\n"
        "    assert counts['findings'] == len(found) == 2, (i, found)\n"
    )
    subprocess.run([sys.executable, "-c", broken], cwd=ROOT, env=environment, check=True)
