"""What breaks in practice: disks, power, signals, single bytes, names. Nothing is lost, nothing is silently wrong.

Faults of feature files stand in test_feature_file and test_shards, those of images in test_faults_images.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import pickle
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
from PIL import Image

from core.datasets.vectors import AttributeVectors, load_attribute_vectors, write_attribute_vectors
from core.features.feature_file import FeatureFile, verify
from core.features.regions import RegionFeatures
from core.files.atomic import write_bytes
from core.files.errors import UserError, run_cli
from core.training.checkpoint import load_checkpoint, save_checkpoint
from tests.helpers import ROOT, refused, run_here
from tests.helpers_features import write
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


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_disk_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    write_bytes(tmp_path / "f", b"old")
    monkeypatch.setattr(os, "fsync", failing(number))
    with pytest.raises(UserError, match=f"{os.strerror(number)}. Nothing was changed"):
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


def test_a_read_only_folder_is_named(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As root a folder's mode refuses nothing, so the refusal is played."""
    real = os.open

    def refuse(path: str, flags: int, *args: object, **more: object) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and "new.hdf5" in str(path):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return real(path, flags, *args, **more)

    monkeypatch.setattr(os, "open", refuse)
    refused(run_here(place, EXTRACT, *NO_FEATURES, "--device", "cpu"), "new.hdf5", "Read-only file system")
    monkeypatch.setattr(Path, "mkdir", failing(errno.EROFS))
    with pytest.raises(UserError, match="choose another place"):
        write_bytes(place / "new" / "b", b"1")


def flipped(good: bytes, at: int) -> bytes:
    bad = bytearray(good)
    bad[at] ^= 1 << at % 8
    return bytes(bad)


def test_every_flipped_byte_of_a_checkpoint(tmp_path: Path) -> None:
    path, values = tmp_path / "c.safetensors", torch.arange(6.0).reshape(2, 3)
    save_checkpoint(path, {"a": values, "n": torch.tensor(3)}, {"epoch": 3})
    good = path.read_bytes()
    spared = 0
    for at in range(len(good)):
        path.write_bytes(flipped(good, at))
        with contextlib.suppress(UserError):
            tensors, meta = load_checkpoint(path)
            # white space of the header: nothing that is read
            assert torch.equal(tensors["a"], values) and meta == {"epoch": 3}
            spared += 1
    assert spared < 10


def test_every_flipped_byte_of_vectors_and_their_record(tmp_path: Path) -> None:
    path, record = tmp_path / "v.pkl", tmp_path / "v.json"
    vectors = np.random.default_rng(0).random((2, 300)).astype(np.float32)
    write_attribute_vectors(path, AttributeVectors(vectors, ["a", "b"], [], {}), "test")
    good, good_record = path.read_bytes(), record.read_bytes()
    for at in [*range(250), *range(250, len(good), 7)]:
        path.write_bytes(flipped(good, at))
        with pytest.raises(UserError, match=r"v\.pkl"):
            load_attribute_vectors(path, 2)
    path.write_bytes(good)
    for at in range(len(good_record)):
        record.write_bytes(flipped(good_record, at))
        with contextlib.suppress(UserError):  # else it is in a name or a word: nothing that is read
            np.testing.assert_array_equal(load_attribute_vectors(path, 2), vectors)


def test_truncated_at_any_length(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "c.safetensors", {"a": torch.arange(6.0)}, {})
    (tmp_path / "v.pkl").write_bytes(pickle.dumps(np.ones((2, 300))))
    for path, read in (
        (write(tmp_path / "f.hdf5"), verify),
        (tmp_path / "c.safetensors", load_checkpoint),
        (tmp_path / "v.pkl", lambda path: load_attribute_vectors(path, 2)),
    ):
        good = path.read_bytes()
        for length in {0, 1, len(good) - 1, *np.linspace(2, len(good) - 2, 40).astype(int).tolist()}:
            path.write_bytes(good[:length])
            with pytest.raises(UserError, match=path.name):
                read(path)


@pytest.mark.parametrize("budget", [0, 1 << 20])
def test_features_of_another_shape_are_refused(tmp_path: Path, budget: int) -> None:
    with FeatureFile(write(tmp_path / "f.hdf5")) as file, pytest.raises(UserError, match="another backbone or resol"):
        RegionFeatures(file, np.arange(3), (1, 8), budget=budget).batch(np.arange(3))


def test_rows_of_zeros_are_those_of_a_script_that_was_killed(place: Path) -> None:
    """Some scripts make the whole data set first; what they had not reached would train as black images."""
    maps = np.concatenate([np.ones((50, 12, 3, 3), "f4"), np.zeros((40, 12, 3, 3), "f4")])
    features(place, feature_map=maps)
    refused(run_here(place, DRIVER, *run("--select", "last")), FEATURES, "broke off")


@pytest.mark.parametrize("flag", ["--out", "--export"])
def test_predictions_never_replace_a_photograph(tmp_path: Path, flag: str) -> None:
    Image.new("RGB", (40, 40)).save(tmp_path / "a.jpg")
    before = (tmp_path / "a.jpg").read_bytes()
    refused(run_here(tmp_path, "predict.py", "nowhere", "a.jpg", flag, "a.jpg"), flag, "a.jpg", "must end in")
    assert (tmp_path / "a.jpg").read_bytes() == before


def test_predictions_never_replace_anything_but_predictions(tmp_path: Path) -> None:
    Image.new("RGB", (40, 40)).save(tmp_path / "a.jpg")
    table, command = tmp_path / "attributes.csv", ("predict.py", "nowhere", "a.jpg", "--out", "attributes.csv")
    table.write_text("class,black\nox,1\n")
    refused(run_here(tmp_path, *command), "attributes.csv", "holds no answers", "another name")
    table.write_text("image,class,side,score\n")
    refused(run_here(tmp_path, *command), "no folder nowhere")


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


@pytest.mark.parametrize("streams", ["| true", ">&- 2>&-", "<&-"])
def test_a_pipe_that_nobody_reads_and_closed_streams_are_no_error(tmp_path: Path, streams: str) -> None:
    save_checkpoint(tmp_path / "c.safetensors", {"a": torch.ones(2)}, {})
    command = f"'{sys.executable}' '{ROOT}/core/commands/verify.py' c.safetensors {streams}; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == (141 if "|" in streams else 0) and not done.stderr
    assert ("nothing wrong" in done.stdout) == (streams == "<&-")
