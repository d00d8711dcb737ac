"""Mutated files against every reader: only a clean refusal, or the content that was written, is no finding.

    python fuzz/fuzz_readers.py --inputs 2000 --seed 0            # that many for each reader
    python fuzz/fuzz_readers.py --inputs 50 --only pkl --start 17 # inputs 17 to 66 of one reader again

A small corpus is made in a temporary folder. Workers with bounded memory and time read the inputs, what the sandbox
would read in a child of its own in themselves. What is found there, or kills a worker, is read once more in a fresh
worker that forks for the sandbox, as a real run does: only what remains, a death or a hang too, is a finding. Input i
of a seed is always the same. Findings are saved below --findings; exit code 1 if there are any.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import io
import json
import logging
import mmap
import os
import pickle
import random
import re
import resource
import shutil
import signal
import struct
import sys
import tarfile
import tempfile
import time
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import scipy.io
import scipy.sparse
import torch
from gensim.models import KeyedVectors, Word2Vec
from PIL import Image
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this clone's core, whatever else is installed

from core.datasets import download, names, vectors
from core.datasets.metadata import Metadata
from core.datasets.registry import DataSet
from core.datasets.xlsa17 import read_mat_files
from core.features import feature_file
from core.features import writer as feature_writer
from core.features.images import load_image
from core.features.weights import load_weights
from core.files import sandbox
from core.files.errors import UserError
from core.files.pickles import load_array_pickle
from core.training.checkpoint import load_checkpoint, save_checkpoint

MEMORY = 2 << 30  # bytes of address space a worker may add
SECONDS = 15  # for one input; reading the corpus itself takes milliseconds
BATCH = 500  # inputs of one worker
TOY = DataSet(name="TOY", anchor="toy", val_share=0.34)


@dataclass
class Target:
    """A reader, and the intact files that it is given mutations of."""

    corpus: list[bytes]
    read: Callable[[Path, bytes], Any]  # raises UserError (or ValueError, for images): refused
    suffix: str
    memory: int = 256 << 20  # resident bytes above which it counts as unbounded
    truth: Any = None  # what a file that is not refused must give, where a checksum covers it


def metadata() -> Metadata:
    """Four classes of five images, the last one unseen."""
    labels = np.repeat(np.arange(4), 5)
    seen = np.flatnonzero(labels < 3)
    trainval, att = np.setdiff1d(seen, seen[::5]), np.eye(4, 6, dtype=np.float32)
    names = [f"images/ä {i}.png" for i in range(20)]
    splits = (trainval, seen[::5], np.flatnonzero(labels == 3), trainval[:8], trainval[8:])
    return Metadata("TOY", names, labels, ["a", "b", "c", "d"], att, att, *splits, "0" * 64)


def mats(folder: Path, compress: bool) -> tuple[bytes, bytes]:
    """res101.mat and att_splits.mat."""
    m = metadata()
    files = np.array([[f"/x/toy/{name}"] for name in m.image_files], dtype=object)
    names = np.array([[name] for name in m.class_names], dtype=object)
    first, second = io.BytesIO(), io.BytesIO()
    scipy.io.savemat(first, {"labels": m.labels[:, None] + 1, "image_files": files}, do_compression=compress)
    locs = {key: getattr(m, key)[:, None] + 1 for key in ("trainval_loc", "test_seen_loc", "test_unseen_loc")}
    locs |= {"train_loc": m.train_loc[:, None] + 1.0, "val_loc": np.uint8(m.val_loc[:, None] + 1)}
    content = {"att": m.att.T, "original_att": m.att.T, "allclasses_names": names, **locs}
    scipy.io.savemat(second, content, do_compression=compress)
    comment = b"MATLAB 5.0 MAT-file".ljust(116)  # with the time of day otherwise
    return comment + first.getvalue()[116:], comment + second.getvalue()[116:]


def odd_mats() -> list[bytes]:
    """att_splits.mat as other programs write it: sparse attributes, nested cells, names as text, a struct beside."""
    m, made = metadata(), []
    locs = {key: getattr(m, key)[:, None] + 1 for key in ("trainval_loc", "test_seen_loc", "test_unseen_loc")}
    nested = np.empty((4, 1), dtype=object)
    for i, name in enumerate(m.class_names):
        nested[i, 0] = np.array([[name]], dtype=object)
    for att, written in ((scipy.sparse.csc_matrix(m.att.T), nested), (m.att, np.array(m.class_names)[:, None])):
        out = io.BytesIO()
        scipy.io.savemat(out, {"att": att, "allclasses_names": written, "info": {"by": "x"}, **locs})
        made.append(b"MATLAB 5.0 MAT-file".ljust(116) + out.getvalue()[116:])
    return made


def hdf5s(folder: Path) -> tuple[bytes, bytes]:
    """A feature file, and one in DAZLE's layout."""
    m, maps = metadata(), np.random.default_rng(0).random((20, 2, 2, 2)).astype(np.float16)
    content = feature_writer.FeatureFileMetadata(m, {"dataset": "TOY", "input_size": 64}, np.ones((6, 3), np.float32))
    with feature_writer.Writer(folder / "new.hdf5", content, (2, 2, 2)) as writer:
        writer.write(np.arange(20), maps)
        new = writer.finish().read_bytes()
    with h5py.File(folder / "old.hdf5", "w") as file:
        file.create_dataset("feature_map", data=maps.astype(np.float32), compression="gzip")
        for key, values in content.arrays().items():
            text = values.dtype == object
            file.create_dataset(key, data=values, dtype=h5py.string_dtype() if text else None, compression="gzip")
    return new, (folder / "old.hdf5").read_bytes()


def archives() -> list[bytes]:
    """A tar.gz, a plain tar with a long name, and a zip."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as t:
        for name in ("top/a.jpg", "top/" + "long" * 40):
            info = tarfile.TarInfo(name)
            info.size = 300
            t.addfile(info, io.BytesIO(bytes(range(100)) * 3))
    made = [gzip.compress(out.getvalue(), mtime=0), out.getvalue()]
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as z:
        for name, content in (("top/a.jpg", bytes(range(100)) * 3), ("top/b.txt", b"b")):
            z.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    return [*made, out.getvalue()]


def images() -> list[bytes]:
    """Every format that is decoded, in several modes."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8))
    forms = [("JPEG", m) for m in ("RGB", "L", "CMYK")] + [("PNG", m) for m in ("RGB", "P", "LA", "RGBA", "I;16", "1")]
    forms += [("GIF", "P"), ("BMP", "RGB"), ("TIFF", "RGB"), ("TIFF", "CMYK"), ("TIFF", "F"), ("WEBP", "RGB")]
    forms += [("PPM", "RGB")]
    made = []
    for form, mode in forms:
        out = io.BytesIO()
        image = Image.fromarray(np.arange(960, dtype=np.uint16).reshape(24, 40)) if mode == "I;16" else noise
        more: dict[str, Any] = {"save_all": True, "append_images": [noise.convert(mode)]} if form == "GIF" else {}
        (image if mode == "I;16" else image.convert(mode)).save(out, form, **more)
        made.append(out.getvalue())
    tiled = io.BytesIO()
    noise.save(tiled, "TIFF", compression="tiff_lzw")
    return [*made, tiled.getvalue()]


def network() -> nn.Module:
    """Few weights, for reading them is what counts; a number that is not a float among them."""
    return nn.Sequential(nn.Conv2d(1, 2, 2), nn.BatchNorm2d(2))


def weights() -> list[bytes]:
    """Both of PyTorch's formats, as published files wrap them; tensors of every kind; a pickle that asks for memory."""
    shapes = {k: v.shape for k, v in network().state_dict().items() if v.is_floating_point()}
    parts = torch.linspace(0.1, 1, sum(s.numel() for s in shapes.values())).split([s.numel() for s in shapes.values()])
    plain = {k: part.view(shape) for (k, shape), part in zip(shapes.items(), parts, strict=True)}
    wrapped = {"state_dict": {f"module.{k}": v for k, v in plain.items()}, "epoch": 3, "best": [0.5]}
    made = []
    for state in (plain, wrapped):
        out = io.BytesIO()
        torch.save(state, out, _use_new_zipfile_serialization=False)
        # the address of the storage, of which there is one for that reason, is another one each time
        made.append(re.sub(rb"\d{13,16}", lambda found: b"7" * len(found[0]), out.getvalue()))
    kinds = [plain["0.bias"].to_sparse(), torch.ones(2, device="meta"), torch.ones(2, dtype=torch.complex64)]
    kinds += [torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8), torch.ones(2).to(torch.float8_e5m2)]
    kinds += [torch.ones(1).expand(2), torch.ones(1).expand(1 << 40), torch.tensor([1e300, 1], dtype=torch.float64)]
    more = [{k: nn.Parameter(v.half()) for k, v in plain.items()}, {**plain, "1.num_batches_tracked": torch.tensor(3)}]
    for state in (plain, wrapped, *more, *({**plain, "0.bias": kind} for kind in kinds)):
        out = io.BytesIO()
        torch.save(state, out)
        made.append(out.getvalue())
    hostile = io.BytesIO()
    with zipfile.ZipFile(out) as old, zipfile.ZipFile(hostile, "w") as new:
        for entry in old.infolist():  # with its date, which is the same each time
            call = b"\x80\x02cbuiltins\nbytearray\n(J\0\0\0\x20tR."
            new.writestr(entry, call if entry.filename.endswith("data.pkl") else old.read(entry))
    return [*made, hostile.getvalue()]


def word_vectors(folder: Path) -> dict[str, list[bytes]]:
    """GloVe's, fastText's and word2vec's text, word2vec's binary form, gensim's pickles and a zip, by suffix."""
    made: dict[str, list[bytes]] = {}
    for size in (300, 2):
        kv = KeyedVectors(size)
        kv.lifecycle_events = None  # they hold the time of day
        kv.add_vectors(["red", "ä", "new", "world"], np.random.default_rng(0).random((4, size)).astype(np.float32))
        for suffix, options in {
            ".txt": [{"binary": False, "write_header": False}, {"binary": False}],
            ".bin": [{"binary": True}],
        }.items():
            for option in options:
                kv.save_word2vec_format(str(folder / "w"), **option)
                made.setdefault(suffix, []).append((folder / "w").read_bytes())
        kv.save(str(folder / "w"), separately=[])
        made.setdefault(".kv", []).append((folder / "w").read_bytes())
    made[".vec"] = made[".txt"][1::2]
    model = Word2Vec(vector_size=2, min_count=1, workers=1, seed=1)
    model.build_vocab([["red", "new", "world"]])
    model.lifecycle_events = None
    model.wv.lifecycle_events = None
    model.save(str(folder / "w"), separately=[])
    made[".model"] = [(folder / "w").read_bytes()]
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr(zipfile.ZipInfo("glove.txt"), made[".txt"][0])
    made[".zip"] = [packed.getvalue()]
    body = made[".txt"][1].split(b"\n", 1)[1]
    made[".txt"] *= 2  # so that not most of it is refused as it is
    made[".txt"] += [header + body for header in (b"99999999 0\n", b"-1 -300\n", b"4 2\n", b"999999999999 300\n")]
    made[".bin"] += [b"99999999 0\n" + made[".bin"][0], b"red 1e99 nan inf\n"]
    return made


def sums(path: Path, _: bytes) -> None:
    """Load word vectors and use them; what comes out is to be numbers."""
    wanted = ["red", "newworld", "ä-red"]
    made = vectors.sum_vectors(wanted, vectors.load_words(str(path), names.words_of(wanted))).vectors
    assert made.ndim == 2 and len(made) == 3 and np.isfinite(made).all(), made


def packed_sums(path: Path, content: bytes) -> None:
    """The same of a .gz; damaging that would only try gzip's own checksum."""
    packed = path.with_name(path.name + ".gz")
    packed.write_bytes(gzip.compress(content, 1))
    sums(packed, content)


def targets(folder: Path) -> dict[str, Target]:
    """Every reader of files that come from elsewhere."""
    beside: dict[str, Path] = {}
    corpus: dict[str, list[bytes]] = {"res101": [], "att_splits": []}
    for compress in (True, False):
        for name, content in zip(corpus, mats(folder, compress), strict=True):
            corpus[name].append(content)
            beside[name] = folder / f"{name}.mat"
            beside[name].write_bytes(content)
    new, old = hdf5s(folder)

    def features(path: Path, _: bytes) -> list[Any]:
        with feature_file.FeatureFile(path) as file:
            m = file.to_metadata(TOY)
            return [file.read(np.arange(20)).tobytes(), m.att.tobytes(), m.labels.tobytes(), m.image_files]

    state = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(3, dtype=torch.float16), "n": torch.tensor(3)}
    save_checkpoint(folder / "c.safetensors", state, {"epoch": 3, "config": {"x": [1, 2]}})

    def checkpoint(path: Path, _: bytes) -> list[Any]:
        tensors, meta = load_checkpoint(path)
        return [sorted((k, t.tolist(), str(t.dtype)) for k, t in tensors.items()), meta]

    array = np.random.default_rng(0).random((4, 300)).astype(np.float32)
    made = vectors.AttributeVectors(array, list("abcd"), [], {})
    vectors.write_attribute_vectors(folder / "v.pkl", made, "fuzz", None)
    sidecar = (folder / "v.json").read_bytes()

    def declared(path: Path, _: bytes) -> bytes:
        path.with_suffix(".json").write_bytes(sidecar)
        return vectors.load_attribute_vectors(path, 4).tobytes()

    def described(path: Path, _: bytes) -> bytes:
        shutil.copy(folder / "v.pkl", path.with_suffix(".pkl"))
        return vectors.load_attribute_vectors(path.with_suffix(".pkl"), 4).tobytes()

    def unpack(path: Path, _: bytes) -> None:
        shutil.rmtree(path.parent / "to", ignore_errors=True)
        download.extract(path, path.parent / "to")
        outside = {p.name for p in path.parent.iterdir()} - {path.name, "to"}
        assert not outside, outside

    words = word_vectors(folder)
    small = [pickle.dumps(np.arange(12, dtype=t).reshape(3, 4), p) for t in ("f4", ">f8", "i2") for p in range(6)]
    small.append(pickle.dumps(np.asfortranarray(np.ones((3, 4))), 2))
    arrays = []
    for values in (np.ones((4, 5), "f4"), np.asfortranarray(np.ones((4, 5), ">f8")), np.ones((4, 5), "i2")):
        out = io.BytesIO()
        np.save(out, values)
        arrays.append(out.getvalue())
    odd = odd_mats()
    return {
        "pkl": Target(small, lambda p, _: load_array_pickle(p), ".pkl"),
        "pkl+sidecar": Target([(folder / "v.pkl").read_bytes()], declared, ".pkl", truth=array.tobytes()),
        "sidecar": Target([sidecar], described, ".json", truth=array.tobytes()),
        "names": Target([b"1 has_a::b\n2 c\n3 d\n"], lambda p, _: names.read_names_file(p), ".txt"),
        "safetensors": Target(
            [(folder / "c.safetensors").read_bytes()],
            checkpoint,
            ".safetensors",
            truth=checkpoint(folder / "c.safetensors", b""),
        ),
        "image": Target(images(), lambda p, _: load_image(p, 32), ".jpg", 1200 << 20),  # 89 megapixels
        "res101": Target(corpus["res101"], lambda p, _: read_mat_files(p, beside["att_splits"], TOY), ".mat"),
        "att_splits": Target(corpus["att_splits"], lambda p, _: read_mat_files(beside["res101"], p, TOY), ".mat"),
        "odd-mat": Target(odd, lambda p, _: read_mat_files(beside["res101"], p, TOY), ".mat"),
        "npy": Target(arrays, lambda p, _: vectors.attribute_vectors(str(p), list("abcd")), ".npy"),
        "archive": Target(archives(), unpack, ".tgz"),
        "hdf5": Target([new], features, ".hdf5", truth=features(folder / "new.hdf5", b"")),
        "hdf5-old": Target([old], features, ".hdf5"),
        "pth": Target(weights(), lambda p, _: load_weights(network(), p), ".pth"),
        **{f"words{suffix}": Target(files, sums, suffix) for suffix, files in words.items()},
        **{f"words{suffix}.gz": Target(words[suffix], packed_sums, suffix) for suffix in (".txt", ".bin")},
    }


def mutate(rng: random.Random, corpus: list[bytes]) -> bytes:
    """One file of the corpus with a few bytes, numbers or stretches changed."""
    data = bytearray(rng.choice(corpus))
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        if not data:
            break
        at, kind = rng.randrange(len(data)), rng.randrange(8)
        if kind == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        elif kind == 2:  # a number: absurd, negative, or just off
            form = rng.choice(("<H", ">H", "<I", ">I", "<Q", ">Q"))
            top = 1 << 8 * struct.calcsize(form)
            value = rng.choice((0, 1, top - 1, top // 2, top // 2 - 1, top // 16, 10**6 % top, rng.randrange(top)))
            data[at : at + struct.calcsize(form)] = struct.pack(form, value)
        elif kind == 3:
            del data[at : at + rng.choice((1, 2, 8, 100))]
        elif kind == 4:
            data[at:at] = data[at : at + rng.choice((1, 4, 16, 200))]
        elif kind == 5:
            data[at:at] = rng.randbytes(rng.choice((1, 4, 16)))
        elif kind == 6 and rng.random() < 0.3:
            del data[at:]
        else:  # a stretch of another file, or of another place
            other = rng.choice(corpus)
            start = rng.randrange(len(other))
            length = rng.choice((1, 4, 8, 32, 128))
            data[at : at + length] = other[start : start + length]
    return bytes(data)


def content_of(seed: int, name: str, index: int, target: Target) -> bytes:
    """Input ``index`` of a seed."""
    return mutate(random.Random(f"{seed} {name} {index}"), target.corpus)


def read_one(target: Target, path: Path, content: bytes) -> tuple[str, str]:
    """("read" | "refused" | "finding", what was found)"""
    path.write_bytes(content)
    try:
        value = target.read(path, content)
    except (UserError, ValueError) as error:
        if not isinstance(error, UserError) and target.suffix != ".jpg":
            return "finding", f"{type(error).__name__}: {error}"
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, MemoryError):
                return "finding", f"out of memory: {error}"
            cause = cause.__cause__ or cause.__context__
        return "refused", ""
    except BaseException as error:
        return "finding", f"{type(error).__name__}: {error}"
    if target.truth is not None and value != target.truth and content not in target.corpus:
        return "finding", "read other values than were written"
    return "read", ""


def read_here(request: bytes, timeout: float) -> tuple[int, bytes, bytes]:
    """Stands in for sandbox.run, without a child: what it would survive kills the worker."""
    function, arguments, *_ = json.loads(request)
    return 0, b"".join(sandbox.answer_to(function, arguments)), b""


def fork_and_read(request: bytes, timeout: float) -> tuple[int, bytes, bytes]:
    """Stands in for sandbox.run, which starts a Python: 0.2 s each."""
    with tempfile.TemporaryFile() as answer:
        pid = os.fork()
        if not pid:
            with contextlib.suppress(BaseException):
                signal.alarm(5)
                function, arguments, *_ = json.loads(request)
                answer.writelines(sandbox.answer_to(function, arguments))
                answer.flush()
                os._exit(0)
            os._exit(1)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        answer.seek(0)
        return code, answer.read(), b""


def work(
    target: Target, name: str, seed: int, indices: range, folder: Path, report: mmap.mmap, sandboxed: bool
) -> None:
    """In a worker: read inputs up to the first finding; ``report`` holds the index at work and the counts."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sandbox.run = fork_and_read if sandboxed else read_here
    download.tqdm = lambda entries, **_: entries
    read = refused = 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for index in indices:
        report[:24] = struct.pack("<QQQ", index, read, refused)
        content = content_of(seed, name, index, target)
        signal.alarm(SECONDS)
        outcome, what = read_one(target, folder / f"input{target.suffix}", content)
        signal.alarm(0)
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        if grown * 1024 > target.memory:
            outcome, what = "finding", f"{grown >> 10} MiB of memory"
        read, refused = read + (outcome == "read"), refused + (outcome == "refused")
        if outcome == "finding":
            (folder.parent / "finding").write_text(f"{what[:300]!r}")
            report[:24] = struct.pack("<QQQ", index, read, refused)
            os._exit(1)
    report[:24] = struct.pack("<QQQ", indices.stop, read, refused)


def fuzz(target: Target, name: str, seed: int, indices: range, folder: Path) -> tuple[Counter[str], dict[int, str]]:
    """All inputs of one reader: counts of outcomes, and findings by index."""
    counts: Counter[str] = Counter()
    found: dict[int, str] = {}
    at = indices.start
    while at < indices.stop:
        at, what, outcomes = _in_worker(target, name, seed, range(at, min(at + BATCH, indices.stop)), folder, False)
        counts.update(outcomes)
        if what:
            _, what, outcomes = _in_worker(target, name, seed, range(at, at + 1), folder, True)
            counts.update(outcomes)
            if what:
                found[at] = what
            at += 1
    counts["findings"] = len(found)
    return counts, found


def _in_worker(
    target: Target, name: str, seed: int, batch: range, folder: Path, sandboxed: bool
) -> tuple[int, str, dict[str, int]]:
    """Where a worker ended, what it found there ("": nothing, the batch is done), and how many it read and refused."""
    place, said, report = folder / "work", folder / "finding", mmap.mmap(-1, 24)
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    said.unlink(missing_ok=True)
    pid = os.fork()
    if not pid:
        code = 1
        with contextlib.suppress(BaseException):
            work(target, name, seed, batch, place, report, sandboxed)
            code = 0
        os._exit(code)
    status = os.waitpid(pid, 0)[1]
    at, read, refused = struct.unpack("<QQQ", report[:24])
    what = f"the process died of signal {status & 0x7F} (14: it hung), exit code {status >> 8}" if status else ""
    return at, said.read_text() if said.exists() else what, {"read": read, "refused": refused}


def main() -> int:
    """Fuzz every reader and print one line each."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--inputs", type=int, default=1000, help="for each reader (default: %(default)s)")
    p.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    p.add_argument("--start", type=int, default=0, help="number of the first input (default: %(default)s)")
    p.add_argument("--only", nargs="+", metavar="READER", help="some readers only")
    p.add_argument("--findings", type=Path, default=Path("results/fuzz"), help="default: %(default)s")
    a = p.parse_args()
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    total: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as made:
        for name, target in targets(Path(made)).items():
            if a.only and name not in a.only:
                continue
            started, indices = time.time(), range(a.start, a.start + a.inputs)
            counts, found = fuzz(target, name, a.seed, indices, Path(made))
            total.update(counts)
            seconds = time.time() - started
            sys.stdout.write(f"{name:12} {a.inputs:7} inputs  {dict(counts)}  {seconds:.0f} s\n")
            for index, what in found.items():
                a.findings.mkdir(parents=True, exist_ok=True)
                content = content_of(a.seed, name, index, target)
                (a.findings / f"{name}-{a.seed}-{index}{target.suffix}").write_bytes(content)
                sys.stdout.write(f"  input {index}: {what}\n")
            sys.stdout.flush()
    return 1 if total["findings"] else 0


if __name__ == "__main__":
    sys.exit(main())
