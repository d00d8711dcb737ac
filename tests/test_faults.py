"""What breaks in practice: disks, power, single bytes, image folders. Nothing lost, nothing silently wrong."""

from __future__ import annotations

import errno
import io
import logging
import os
import pickle
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image

from core.datasets import vectors as word_vectors
from core.datasets.registry import DEMO
from core.features.backbones import build_backbone
from core.features.extraction import extract
from core.features.feature_file import FeatureFile, verify
from core.features.images import Normaliser, load_image
from core.features.regions import RegionFeatures
from core.features.writer import Writer
from core.files import atomic as files
from core.files.atomic import atomic_path, write_bytes
from core.files.errors import UserError
from core.training.checkpoint import load_checkpoint, save_checkpoint
from tests.helpers_features import SHAPE, TINY, content, make_data, maps, metadata, write

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 80, 3), dtype=np.uint8))


def encoded(form: str, mode: str = "RGB", **options) -> bytes:
    out = io.BytesIO()
    NOISE.convert(mode).save(out, form, **options)
    return out.getvalue()


def bomb() -> bytes:
    out = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(out, "PNG")
    return out.getvalue()


def exif() -> bytes:
    turned = Image.Exif()
    turned[0x0112] = 6
    return encoded("JPEG", exif=turned)


BAD = {
    "truncated.jpg": encoded("JPEG")[:1500],
    "truncated.png": encoded("PNG")[:1500],
    "html.jpg": b"<!DOCTYPE html><title>404</title>",
    "empty.jpg": b"",
    "header only.jpg": encoded("JPEG")[:20],
    "bomb.png": bomb(),
    "crc.png": encoded("PNG").replace(b"IHDR", b"IHDX"),
}
GOOD = {
    "palette.png": encoded("PNG", "P"),
    "grey and alpha.png": encoded("PNG", "LA"),
    "cmyk.jpg": encoded("JPEG", "CMYK"),
    "1x1.png": None,
    "16 bit.png": None,
    "animated.gif": encoded("GIF", "P", save_all=True, append_images=[Image.new("P", (80, 50))]),
    "turned.jpg": exif(),
    "Grünspecht, weiß (1).jpg": encoded("JPEG"),
    "日本語 🐦.png": encoded("PNG"),
    "png named.jpg": encoded("PNG"),
}


def with_images(root: Path) -> tuple[Path, list[str]]:
    """make_data with the first images replaced by those of GOOD and BAD and by things that are no files."""
    data = make_data(root)
    folder = data / "DEMO" / "DEMO_creatures" / "images"
    names = [*GOOD, *BAD, "missing.jpg", "loop.jpg", "folder.jpg"]
    old = sorted(p.name for p in folder.iterdir())
    for name, former in zip(names, old, strict=False):
        (folder / former).unlink()
        if name in BAD or GOOD.get(name):
            (folder / name).write_bytes({**BAD, **GOOD}[name])
    Image.new("RGB", (1, 1), (9, 8, 7)).save(folder / "1x1.png")
    Image.fromarray(np.full((40, 40), 32896, np.uint16)).save(folder / "16 bit.png")
    (folder / "loop.jpg").symlink_to(folder / "loop.jpg")
    (folder / "folder.jpg").mkdir()
    mat = data / "xlsa17" / "data" / "DEMO" / "res101.mat"
    images = [f"images/{name}" for name in [*names, *old[len(names) :]]]
    files = np.array([[f"/x/DEMO_creatures/{name}"] for name in images], dtype=object)
    scipy.io.savemat(mat, {"labels": scipy.io.loadmat(mat)["labels"], "image_files": files})
    return data, images


def test_one_report_names_every_bad_image_and_good_rows_belong_to_their_image(tmp_path: Path) -> None:
    data, images = with_images(tmp_path / "data")
    out = tmp_path / "f.hdf5"
    with pytest.raises(UserError) as caught:
        extract(DEMO, data_root=data, out=out, config=TINY)
    bad = [*BAD, "missing.jpg", "loop.jpg", "folder.jpg"]
    assert f"{len(bad)} of {len(images)} images" in str(caught.value) and not out.exists()
    report = (tmp_path / "f.hdf5.partial.bad_images.txt").read_text(encoding="utf-8").splitlines()
    assert [line.split(": ")[0].rsplit("/", 1)[1] for line in report] == bad
    assert "Too many levels of symbolic links" in report[-2] and "not a file" in report[-1]

    folder = data / "DEMO" / "DEMO_creatures"
    network, normalise = build_backbone(TINY.backbone, "random"), Normaliser(torch.device("cpu"), torch.float32)
    with h5py.File(tmp_path / "f.hdf5.partial") as file:
        for row, name in enumerate(images):
            if Path(name).name in bad:
                assert not file["row_crc32"][row]  # never written
                continue
            expected = network(normalise(torch.from_numpy(load_image(folder / name, 64)[None].copy())))[0]
            np.testing.assert_allclose(file["feature_map"][row], expected.numpy(), atol=0.02, rtol=0.01, err_msg=name)

    for name in bad:
        path = folder / "images" / name
        path.rmdir() if path.is_dir() else path.unlink(missing_ok=True)
        path.write_bytes(GOOD["palette.png"])
    assert extract(DEMO, data_root=data, out=out, config=TINY) == out
    with FeatureFile(out) as file:
        assert file.image_files == images and not list(tmp_path.glob("*.partial*"))


def test_exif_orientation_is_not_applied_and_of_an_animation_the_first_frame_is_taken(tmp_path: Path) -> None:
    for name in ("turned.jpg", "animated.gif"):
        (tmp_path / name).write_bytes(GOOD[name])
    (tmp_path / "plain.jpg").write_bytes(encoded("JPEG"))
    np.testing.assert_array_equal(load_image(tmp_path / "turned.jpg", 32), load_image(tmp_path / "plain.jpg", 32))
    assert load_image(tmp_path / "animated.gif", 32).std() > 10  # noise; the second frame is black


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM"])
def test_an_image_cut_short_is_refused_or_whole(tmp_path: Path, form: str) -> None:
    """Never with a grey rest. (A flipped byte shows only where the format has checksums: PNG.)"""
    good, path = encoded(form, "P" if form == "GIF" else "RGB"), tmp_path / "a"
    path.write_bytes(good)
    whole = load_image(path, 32)
    for length in {*range(0, len(good), len(good) // 40), *range(len(good) - 20, len(good))}:
        path.write_bytes(good[:length])
        try:
            got = load_image(path, 32)
        except ValueError:
            continue
        np.testing.assert_array_equal(got, whole)


@pytest.mark.parametrize("same", ["images/001.png", "images/./001.png", "images//001.png"])
def test_an_image_named_twice_is_refused(tmp_path: Path, same: str) -> None:
    data = make_data(tmp_path / "data")
    mat = data / "xlsa17" / "data" / "DEMO" / "res101.mat"
    content = scipy.io.loadmat(mat)
    names = content["image_files"]
    names[0, 0] = f"/x/DEMO_creatures/{same}"
    scipy.io.savemat(mat, {"labels": content["labels"], "image_files": names})
    with pytest.raises(UserError, match=r"res101\.mat: 1 image files are named more than once"):
        extract(DEMO, data_root=data, out=tmp_path / "f.hdf5", config=TINY)


def fails_with(number: int, after: int = 0):
    """Stands in for a system call that fails from its ``after``-th call on."""
    calls = []

    def call(*args):
        calls.append(args)
        if len(calls) > after:
            raise OSError(number, os.strerror(number))
        return len(args[1]) if len(args) > 1 else None

    return call


@pytest.mark.parametrize(
    ("name", "after"),
    [
        ("posix_fallocate", 0),
        ("pwrite", 0),
        ("pwrite", 31),
        ("pwrite", 60),
        ("pwrite", 121),
        ("fsync", 0),
        ("fsync", 2),
    ],
)
def test_a_full_disk_while_rows_are_written_leaves_what_the_next_run_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, after: int
) -> None:
    path, real = tmp_path / "f.hdf5", getattr(os, name)
    calls = []

    def full(*args):
        calls.append(args)
        if len(calls) > after:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(os, name, full)
        with pytest.raises(UserError, match="No space left"):
            fill(path)
    assert not path.exists()
    fill(path)
    (tmp_path / "other").mkdir()
    assert path.read_bytes() == write(tmp_path / "other" / "f.hdf5").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["f.hdf5", "other"]


def fill(path: Path) -> None:
    """Write what is missing of a feature file."""
    with Writer(path, content(), SHAPE) as writer:
        for row in np.flatnonzero(~writer.done):
            writer.write(np.array([row]), maps()[[row]])
            if row % 8 == 0:
                writer.flush()
        writer.finish()


_LIMITED = """
import resource, sys
from pathlib import Path
from tests.test_faults import *
folder, size = Path(sys.argv[1]), write(Path(sys.argv[1]) / "size").stat().st_size
(folder / "size").unlink()
actions = {
    "features": lambda: write(folder / "f.hdf5"),
    "checkpoint": lambda: save_checkpoint(folder / "c.safetensors", {"a": torch.ones(99999)}, {}),
    "bytes": lambda: write_bytes(folder / "b", bytes(99999)),
}
for limit in (0, 20_000, size - 1):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    for name, action in actions.items():
        try:
            action()
        except UserError as error:
            assert "File too large" in str(error) or "No space left" in str(error), error
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
            print(name, *[path.name for path in folder.iterdir()], flush=True)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
verify(fill(folder / "f.hdf5") or folder / "f.hdf5")
"""


def test_a_disk_that_takes_no_more_bytes(tmp_path: Path) -> None:
    """RLIMIT_FSIZE refuses writes beyond a size, as a quota does; HDF5's and safetensors' own writes too."""
    command = [sys.executable, "-c", _LIMITED, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent.parent)
    nothing = ["features", "checkpoint", "bytes"]
    found = [" ".join([line.split()[0], *sorted(line.split()[1:])]) for line in done.stdout.splitlines()]
    assert found == nothing * 3, done.stdout + done.stderr
    assert done.returncode == 0, done.stderr


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_bytes(tmp_path / "f", b"old")
    monkeypatch.setattr(os, "fsync", fails_with(errno.ENOSPC))
    with pytest.raises(UserError, match="No space left on device. Nothing was changed"):
        write_bytes(tmp_path / "f", b"new")
    assert (tmp_path / "f").read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_without_fsync_is_said_once_and_no_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    files._warn_no_fsync.cache_clear()
    monkeypatch.setattr(os, "fsync", fails_with(number))
    with caplog.at_level(logging.WARNING):
        verify(write(tmp_path / "f.hdf5"))
        write_bytes(tmp_path / "b", b"1")
    assert caplog.text.count("has no fsync") == 1


def test_a_failing_disk_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", fails_with(errno.EIO))
    with pytest.raises(UserError, match="Input/output error"):
        write(tmp_path / "f.hdf5")


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_read_only_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """As root a folder's mode refuses nothing, so the refusal is played."""
    data, real = make_data(tmp_path / "data"), os.open

    def refuse(path, flags, *args, **more):
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and "f.hdf5" in str(path):
            raise OSError(number, os.strerror(number), str(path))
        return real(path, flags, *args, **more)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(UserError, match=rf"cannot write .*f\.hdf5: {os.strerror(number)}"):
        extract(DEMO, data_root=data, out=tmp_path / "f.hdf5", config=TINY)
    monkeypatch.setattr(Path, "mkdir", lambda path, **_: fails_with(number)())
    with pytest.raises(UserError, match="Choose another place"):
        write_bytes(tmp_path / "new" / "b", b"1")


def test_a_lock_of_a_dead_process_is_no_obstacle_and_no_locks_at_all_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "f.hdf5.lock").write_text("12345")
    write(tmp_path / "f.hdf5")
    monkeypatch.setattr(files.fcntl, "flock", fails_with(errno.ENOLCK))
    with pytest.raises(UserError, match="cannot lock files"):
        write(tmp_path / "g.hdf5")
    assert [p.name for p in tmp_path.iterdir()] == ["f.hdf5"]


def test_what_a_killed_process_left_is_swept_and_what_a_living_one_writes_is_not(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    for pid, age in ((child.pid, 9999), (child.pid, 0), (os.getppid(), 9999)):
        old = tmp_path / f".f.{pid}.{age}.tmp"
        old = old.with_name(f".f.{pid}.tmp") if age else tmp_path / f".f.x.{pid}.tmp"
        old.write_bytes(b"half")
        os.utime(old, (time.time() - age,) * 2)
    write_bytes(tmp_path / "f", b"1")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        ["f", f".f.{os.getppid()}.tmp", f".f.x.{child.pid}.tmp"]
    )


def test_an_error_in_between_leaves_nothing(tmp_path: Path) -> None:
    def half() -> None:
        with atomic_path(tmp_path / "f") as temporary:
            temporary.write_bytes(b"half")
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    with pytest.raises(UserError, match="Disk quota exceeded"):
        half()
    assert not list(tmp_path.iterdir())


def flipped(good: bytes, at: int) -> bytes:
    bad = bytearray(good)
    bad[at] ^= 1 << at % 8
    return bytes(bad)


def outcome(read, path: Path):
    """What is read, or the text of the refusal."""
    try:
        return read(path)
    except UserError as error:
        return str(error)


def test_one_flipped_byte_anywhere_in_a_feature_file(tmp_path: Path) -> None:
    path = write(tmp_path / "f.hdf5")
    good = path.read_bytes()
    with FeatureFile(path) as file:
        rows, crcs = file.row_offset(0), good.index(file._row_crc32.tobytes())
    places = [*range(0, len(good), 149), *range(64), *range(505, 530), *range(crcs, crcs + 240, 7)]
    places += [*range(rows - 60, rows + 900, 31), *range(len(good) - 20, len(good))]
    for at in places:
        path.write_bytes(flipped(good, at))
        with pytest.raises(UserError, match=r"f\.hdf5"):
            verify(path)
    path.write_bytes(good)
    verify(path)


def test_a_row_in_the_place_of_another_is_noticed(tmp_path: Path) -> None:
    """Alone, and with its checksum: the header holds those."""
    path = write(tmp_path / "f.hdf5")
    with FeatureFile(path) as file:
        rows, crcs = (file.row_offset(3), file.row_offset(40)), path.read_bytes().index(file._row_crc32.tobytes())
    changed = path.read_bytes()
    for (a, b), size, message in (
        (rows, 784, "row 3 .*is damaged"),
        ((crcs + 12, crcs + 160), 4, "was changed after it was finished"),
    ):
        first, second = changed[a : a + size], changed[b : b + size]
        changed = changed[:a] + second + changed[a + size : b] + first + changed[b + size :]
        path.write_bytes(changed)
        with pytest.raises(UserError, match=rf"f\.hdf5.*{message}"):
            verify(path)


def test_one_flipped_byte_in_a_partial_file_costs_its_row_only(tmp_path: Path) -> None:
    path = tmp_path / "f.hdf5"
    with Writer(path, content(), SHAPE) as writer:
        writer.write(np.arange(60), maps())
        writer.flush()
        offset, crcs = writer.row_offset(11), writer._crcs[0]
    partial = tmp_path / "f.hdf5.partial"
    good = partial.read_bytes()
    for at in (offset + 5, crcs + 4 * 11 + 2):
        partial.write_bytes(flipped(good, at))
        with Writer(path, content(), SHAPE) as writer:
            assert np.flatnonzero(~writer.done).tolist() == [11]
    for at in (good.index(metadata().att.tobytes()), 520, good.index(b"images/30.png"), crcs - 1):
        partial.write_bytes(flipped(good, at))
        with pytest.raises(UserError, match=r"f\.hdf5\.partial (is damaged|was begun)"):
            Writer(path, content(), SHAPE)


@pytest.mark.parametrize("change", ["longer", "shorter", "empty"])
def test_a_partial_file_of_another_length_is_refused(tmp_path: Path, change: str) -> None:
    path, partial = tmp_path / "f.hdf5", tmp_path / "f.hdf5.partial"
    with Writer(path, content(), SHAPE) as writer:
        writer.write(np.arange(60), maps())
    good = partial.read_bytes()
    partial.write_bytes({"longer": good + b"x", "shorter": good[:-1], "empty": b""}[change])
    with pytest.raises(UserError, match=r"f\.hdf5\.partial is damaged.*delete it"):
        Writer(path, content(), SHAPE)


def test_a_run_that_ended_before_renaming_ends_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, real = tmp_path / "f.hdf5", os.replace

    def killed(source, target):
        if target == path:
            raise KeyboardInterrupt
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            fill(path)
    fill(path)
    (tmp_path / "other").mkdir()
    assert path.read_bytes() == write(tmp_path / "other" / "f.hdf5").read_bytes()


def test_a_header_that_was_cut_off_half_written_is_written_anew(tmp_path: Path) -> None:
    path = tmp_path / "f.hdf5"
    with Writer(path, content(), SHAPE) as writer:
        writer.write(np.arange(60), maps())
    with open(tmp_path / "f.hdf5.partial", "r+b") as handle:
        handle.write(b"VSMRFEAT" + b"\1" * 33)
    fill(path)
    (tmp_path / "other").mkdir()
    assert path.read_bytes() == write(tmp_path / "other" / "f.hdf5").read_bytes()


def test_every_flipped_byte_of_a_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    save_checkpoint(path, {"a": torch.arange(6.0).reshape(2, 3), "n": torch.tensor(3)}, {"epoch": 3})
    good = path.read_bytes()
    spared = 0
    for at in range(len(good)):
        path.write_bytes(flipped(good, at))
        got = outcome(load_checkpoint, path)
        if isinstance(got, str):
            assert "c.safetensors" in got
        else:  # white space of the header: nothing that is read
            assert torch.equal(got[0]["a"], torch.arange(6.0).reshape(2, 3)) and got[1] == {"epoch": 3}
            spared += 1
    assert spared < 10


@pytest.mark.parametrize(
    "header", [{}, {"vsmr": "{"}, {"vsmr": "[]"}, {"vsmr": "{}"}, {"vsmr": '{"meta": "[1]", "sha256": "x"}'}]
)
def test_a_safetensors_file_that_is_no_checkpoint(tmp_path: Path, header: dict[str, str]) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.ones(2)}, tmp_path / "c.safetensors", metadata=header)
    with pytest.raises(UserError, match=r"c\.safetensors"):
        load_checkpoint(tmp_path / "c.safetensors")


def test_every_flipped_byte_of_vectors_and_their_record(tmp_path: Path, no_child: None) -> None:
    path, vectors = tmp_path / "v.pkl", np.random.default_rng(0).random((2, 300)).astype(np.float32)
    word_vectors.write_attribute_vectors(path, word_vectors.AttributeVectors(vectors, ["a", "b"], [], {}), "test", None)
    good, record = path.read_bytes(), (tmp_path / "v.json").read_bytes()
    for at in [*range(250), *range(250, len(good), 7)]:
        path.write_bytes(flipped(good, at))
        with pytest.raises(UserError, match=r"v\.pkl"):
            word_vectors.load_attribute_vectors(path, 2)
    path.write_bytes(good)
    for at in range(len(record)):
        (tmp_path / "v.json").write_bytes(flipped(record, at))
        got = outcome(lambda path: word_vectors.load_attribute_vectors(path, 2), path)
        assert "v." in got if isinstance(got, str) else np.array_equal(got, vectors)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.full((2, 300), np.nan), "not finite"),
        (np.full((2, 300), 1e300), "not finite"),
        (np.ones((3, 300)), r"\(2, V\), one row an attribute, is needed"),
        (np.ones(600), r"\(2, V\), one row an attribute, is needed"),
        (np.zeros((2, 300)), "zeros"),
        (np.ones((2, 300), complex), "numeric"),
        ("text", "not a numeric"),
    ],
)
def test_wrong_vectors(tmp_path: Path, values: object, message: str) -> None:
    (tmp_path / "v.pkl").write_bytes(pickle.dumps(values))
    with pytest.raises(UserError, match=rf"v\.pkl.*{message}"):
        word_vectors.load_attribute_vectors(tmp_path / "v.pkl", 2)


def test_truncated_at_any_length(tmp_path: Path) -> None:
    feature = write(tmp_path / "f.hdf5")
    save_checkpoint(tmp_path / "c.safetensors", {"a": torch.arange(6.0)}, {})
    (tmp_path / "v.pkl").write_bytes(pickle.dumps(np.ones((2, 300))))
    readers = {
        feature: (verify, 3),  # the child process takes its time
        tmp_path / "c.safetensors": (load_checkpoint, 40),
        tmp_path / "v.pkl": (lambda path: word_vectors.load_attribute_vectors(path, 2), 40),
    }
    for path, (read, count) in readers.items():
        good = path.read_bytes()
        for length in {0, 1, len(good) - 1, *np.linspace(2, len(good) - 2, count).astype(int).tolist()}:
            path.write_bytes(good[:length])
            with pytest.raises(UserError, match=path.name):
                read(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"att": np.full((6, 5), np.nan, np.float32)}, "att holds NaN"),
        ({"original_att": np.full((6, 5), np.inf, np.float32)}, "original_att holds NaN or inf"),
        ({"att": np.r_[np.ones((5, 5)), np.zeros((1, 5))].astype(np.float32)}, "no attribute is present"),
        ({"att": np.ones((5, 5), np.float32)}, "att is of 5 classes"),
        ({"labels": np.repeat(np.arange(1, 7), 10)}, "labels run from 1 to 6"),
        ({"trainval_loc": np.arange(1, 61)}, "trainval_loc runs from 1 to 60"),
        ({"test_seen_loc": np.array([0, 0])}, "names 1 images twice"),
        ({"class_names": ["a"] * 6}, "more than once"),
        ({"original_att": np.ones((6, 4), np.float32)}, "but original_att"),
    ],
)
def test_wrong_content_of_a_feature_file(tmp_path: Path, changes: dict, message: str) -> None:
    wrong = replace(content(), metadata=replace(metadata(), **changes))
    with Writer(tmp_path / "f.hdf5", wrong, SHAPE) as writer:
        writer.write(np.arange(60), maps())
        writer.finish()
    with pytest.raises(UserError, match=rf"f\.hdf5.*{message}"):
        FeatureFile(tmp_path / "f.hdf5")


@pytest.mark.parametrize("w2v", [np.ones((4, 3)), np.full((5, 3), np.nan)])
def test_wrong_vectors_in_a_feature_file(tmp_path: Path, w2v: np.ndarray) -> None:
    with Writer(tmp_path / "f.hdf5", replace(content(), w2v=w2v), SHAPE) as writer:
        writer.write(np.arange(60), maps())
        writer.finish()
    with pytest.raises(UserError, match=r"f\.hdf5: w2v_att"):
        FeatureFile(tmp_path / "f.hdf5")


@pytest.mark.parametrize("budget", [0, 1 << 20])
def test_features_of_another_shape_are_refused(tmp_path: Path, budget: int) -> None:
    with FeatureFile(write(tmp_path / "f.hdf5")) as file, pytest.raises(UserError, match="another backbone or resol"):
        RegionFeatures(file, np.arange(3), (1, 8), budget=budget).batch(np.arange(3))
