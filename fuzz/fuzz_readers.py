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
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision  # noqa: F401  # load_image imports it when it is first called: not in every worker

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this clone's core, whatever else is installed

from core.datasets import download, names, vectors
from core.datasets.xlsa17 import read_mat_files
from core.features import feature_file
from core.features.images import load_image
from core.features.weights import load_weights
from core.files import sandbox
from core.files.errors import UserError
from core.files.pickles import load_array_pickle
from core.training.checkpoint import load_checkpoint, save_checkpoint
from fuzz.corpus import TOY, archives, hdf5s, images, mats, network, odd_mats, weights, word_vectors

MEMORY = 2 << 30  # bytes of address space a worker may add
SECONDS = 15  # for one input (--seconds); reading the corpus itself takes milliseconds
BATCH = 500  # inputs of one worker


@dataclass
class Target:
    """A reader, and the intact files that it is given mutations of."""

    corpus: list[bytes]
    read: Callable[[Path, bytes], Any]  # raises UserError (or ValueError, for images): refused
    suffix: str
    memory: int = 256 << 20  # resident bytes above which it counts as unbounded
    truth: Any = None  # what a file that is not refused must give, where a checksum covers it


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
                signal.alarm(max(1, SECONDS // 3))
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
    global SECONDS
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--inputs", type=int, default=1000, help="for each reader (default: %(default)s)")
    p.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    p.add_argument("--start", type=int, default=0, help="number of the first input (default: %(default)s)")
    p.add_argument("--only", nargs="+", metavar="READER", help="some readers only")
    p.add_argument("--findings", type=Path, default=Path("results/fuzz"), help="default: %(default)s")
    p.add_argument("--seconds", type=int, default=SECONDS, help="for one input (default: %(default)s)")
    a = p.parse_args()
    SECONDS = a.seconds
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
