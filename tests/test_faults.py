"""What breaks in practice: disks, power, signals, locks, single bytes, pickles. Nothing is lost or silently wrong.

Faults of feature files stand in test_feature_file and test_shards, those of images in test_images.
"""

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
import scipy.io
import scipy.sparse

from core.datasets.vectors import AttributeVectors, load_attribute_vectors, write_attribute_vectors
from core.files import kinds
from core.files.atomic import Lock, is_locked, write_bytes
from core.files.errors import UserError, run_cli
from core.files.matfile import read_mat
from core.files.pickles import load_array_pickle
from tests.helpers import ROOT, forked, refused, run_here
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


def test_every_flipped_byte_and_every_length_of_vectors(tmp_path: Path) -> None:
    """Refused, or what is read is what was written: white space and words that nothing depends on."""
    values, vectors = np.arange(600, dtype=np.float32).reshape(2, 300) + 1, tmp_path / "v.pkl"
    write_attribute_vectors(vectors, AttributeVectors(values, ["a", "b"], [], {}), "test")
    record = vectors.with_suffix(".json")
    for path, most in ((vectors, 0), (record, record.stat().st_size)):  # bytes that nothing depends on
        good, spared = path.read_bytes(), 0
        lengths = {0, 1, len(good) - 1, *np.linspace(2, len(good) - 2, 40).astype(int).tolist()}
        flips = [flipped(good, at) for at in [*range(min(len(good), 250)), *range(250, len(good), 7)]]
        for bad in [*flips, *(good[:length] for length in lengths)]:
            path.write_bytes(bad)
            with contextlib.suppress(UserError):
                assert (load_attribute_vectors(vectors, 2) == values).all()
                spared += 1
        assert spared <= most
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


def test_what_a_killed_process_left_is_swept_and_what_is_being_written_is_not(tmp_path):
    for name, age in ((".f.1.tmp", 9999), (".f.2.tmp", 0), (".f.x.tmp", 9999)):
        (tmp_path / name).write_bytes(b"half")
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    write_bytes(tmp_path / "f", b"1")
    assert sorted(p.name for p in tmp_path.iterdir()) == [".f.2.tmp", ".f.x.tmp", "f"]


def test_a_lock_refuses_a_second_process_and_ends_with_a_killed_one(tmp_path):
    path = tmp_path / "f"
    child = forked(lambda: (Lock(path), time.sleep(60)))
    try:
        while child.is_alive() and not is_locked(path):
            time.sleep(0.01)
        with pytest.raises(UserError, match="another process is writing"):
            Lock(path)
    finally:
        child.kill()
        child.join()
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
    content = {"numbers": np.arange(12, dtype=np.uint16).reshape(3, 4), "empty": np.empty((0, 0)), "word": "Grün"}
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
