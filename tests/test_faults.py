"""What breaks in practice: disks, power, signals, single bytes, names. Nothing is lost, nothing is silently wrong.

Faults of feature files stand in test_feature_file and test_shards, those of images in test_images.
"""

import contextlib
import errno
import io
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from core.datasets.vectors import AttributeVectors, load_attribute_vectors, write_attribute_vectors
from core.files.atomic import write_bytes
from core.files.errors import UserError, run_cli
from core.training.checkpoint import load_checkpoint, save_checkpoint
from tests.helpers import ROOT, refused, run_here
from tests.messages import DRIVER, EXTRACT, FEATURES, NO_FEATURES, base, features, run

ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    base(tmp_path)
    return tmp_path


def failing(number: int) -> Callable[..., None]:
    """Stands in for a system call that fails."""

    def call(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return call


def test_a_disk_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_bytes(tmp_path / "f", b"old")
    monkeypatch.setattr(os, "fsync", failing(errno.ENOSPC))
    with pytest.raises(UserError, match=f"{os.strerror(errno.ENOSPC)}. Nothing was changed"):
        write_bytes(tmp_path / "f", b"new")
    assert (tmp_path / "f").read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("script", "arguments", "limit"),
    [(DRIVER, run(), 2000), (EXTRACT, [*NO_FEATURES, "--device", "cpu"], 300_000)],  # bytes
)
def test_a_disk_that_takes_no_more_bytes_is_a_sentence_and_the_command_ends_later(
    place: Path, script: str, arguments: list[str], limit: int
) -> None:
    """A limit of a file's size refuses writes as a quota does, those of HDF5 and safetensors too."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        ended = run_here(place, script, *arguments)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    refused(ended, "File too large")
    assert not [p for p in place.rglob("*") if p.name in ("new.hdf5", "metrics.json") or p.name.endswith(".tmp")]
    code, _, said = run_here(place, script, *arguments)
    assert code == 0, said


def flipped(good: bytes, at: int) -> bytes:
    bad = bytearray(good)
    bad[at] ^= 1 << at % 8
    return bytes(bad)


def test_every_flipped_byte_and_every_length_of_checkpoints_and_vectors(tmp_path: Path) -> None:
    """Refused, or what is read is what was written: white space and words that nothing depends on."""
    values = torch.arange(600.0).reshape(2, 300) + 1
    checkpoint, vectors = tmp_path / "c.safetensors", tmp_path / "v.pkl"
    save_checkpoint(checkpoint, {"a": values[:, :3].clone(), "n": torch.tensor(3)}, {"epoch": 3})
    write_attribute_vectors(vectors, AttributeVectors(values.numpy(), ["a", "b"], [], {}), "test")

    def read_checkpoint() -> bool:
        tensors, meta = load_checkpoint(checkpoint)
        return torch.equal(tensors["a"], values[:, :3]) and meta == {"epoch": 3}

    def read_vectors() -> bool:
        return bool((load_attribute_vectors(vectors, 2) == values.numpy()).all())

    record = vectors.with_suffix(".json")
    most = {checkpoint: 10, vectors: 0, record: record.stat().st_size}  # bytes that nothing depends on
    for path, read in ((checkpoint, read_checkpoint), (vectors, read_vectors), (record, read_vectors)):
        good, spared = path.read_bytes(), 0
        lengths = {0, 1, len(good) - 1, *np.linspace(2, len(good) - 2, 40).astype(int).tolist()}
        flips = [flipped(good, at) for at in [*range(min(len(good), 250)), *range(250, len(good), 7)]]
        for bad in [*flips, *(good[:length] for length in lengths)]:
            path.write_bytes(bad)
            with contextlib.suppress(UserError):
                assert read()
                spared += 1
        assert spared <= most[path]
        path.write_bytes(good)


def test_rows_of_zeros_are_those_of_a_script_that_was_killed(place: Path) -> None:
    """Some scripts make the whole data set first; what they had not reached would train as black images."""
    maps = np.concatenate([np.ones((50, 12, 3, 3), "f4"), np.zeros((40, 12, 3, 3), "f4")])
    features(place, feature_map=maps)
    refused(run_here(place, DRIVER, *run("--select", "last")), FEATURES, "broke off")


@pytest.mark.parametrize(
    ("script", "arguments", "begun"),
    [
        (DRIVER, ["--method", "dazle", "--epochs", "2000", "--device", "cpu"], "results/**/log.jsonl"),
        (EXTRACT, ["--batch-size", "1", "--device", "cpu", *NO_FEATURES[:4], *NO_FEATURES[6:]], "new.hdf5.rows*"),
    ],
)
def test_ctrl_c_is_one_line(place: Path, script: str, arguments: list[str], begun: str) -> None:
    """In the threads that decode, between epochs; to the whole group, as a terminal sends it."""
    child = subprocess.Popen(
        [sys.executable, str(ROOT / script), *arguments],
        cwd=place,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # a program that was started in the background hands on to its children that Ctrl-C is ignored
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while child.poll() is None and not [*place.glob(begun)]:
        time.sleep(0.01)
    time.sleep(random.random())
    os.killpg(child.pid, signal.SIGINT)
    out, err = child.communicate(timeout=60)
    assert child.returncode == 130 and "Traceback" not in out + err, err
    assert err.endswith("interrupted; run the same command again to continue\n"), err


def test_a_terminal_that_lacks_a_letter_shows_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, "ascii"))
    assert run_cli(lambda: sys.stdout.write("γ") - 1) == 0
    assert shown.getvalue() == rb"\u03b3"


def test_a_pipe_that_nobody_reads_is_no_error() -> None:
    program = "import sys; from core.files.errors import run_cli; sys.exit(run_cli(lambda: print(99 * sys.version)))"
    command = f"'{sys.executable}' -c '{program}' | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 141 and not done.stderr
