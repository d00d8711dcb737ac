"""Faults beyond the list of those met in public, of the same kinds: tried as a user would, through the commands."""

from __future__ import annotations

import os
import pickle
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gensim.models import FastText
from PIL import Image

from core.datasets.sheets import read_attributes
from core.datasets.vectors import attribute_vectors, load_attribute_vectors
from core.features.images import load_image
from core.files.errors import UserError, run_cli
from tests.helpers import ROOT, cells, refused, run_here
from tests.messages import DRIVER, EXTRACT, NO_FEATURES, WORDS, base, features, mats, run

NAMES = [f"word{k}" for k in range(8)]
LINES = "".join(f"{name} {k} 2 3\n" for k, name in enumerate(NAMES))
TRUE = np.array([[k, 2, 3] for k in range(8)], "f4")


@pytest.fixture(scope="module")
def toy_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("beyond")
    base(place)
    return place


def packed_by_a_mac(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/v.txt", LINES)
        archive.writestr("__MACOSX/a/._v.txt", b"\0\5\26\7")


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("tabs.txt", lambda p: p.write_text(LINES.replace(" ", "\t"))),
        ("tabs.vec", lambda p: p.write_text("8\t3\n" + LINES.replace(" ", "\t"))),
        ("mark.txt", lambda p: p.write_bytes(b"\xef\xbb\xbf" + LINES.replace("\n", "\r\n").encode())),
        ("mark.vec", lambda p: p.write_bytes(b"\xef\xbb\xbf8 3\n" + LINES.encode())),
        ("twice.txt", lambda p: p.write_text(LINES + "word1 9 9 9\n")),  # gensim takes the first
        ("mac.zip", packed_by_a_mac),
        ("UPPER.NPY", lambda p: p.write_bytes(saved(TRUE))),
        ("UPPER.PKL", lambda p: p.write_bytes(pickle.dumps(TRUE))),
    ],
)
def test_word_vectors_as_other_programs_write_them(tmp_path: Path, name: str, write: Callable[[Path], object]) -> None:
    write(tmp_path / name)
    np.testing.assert_array_equal(attribute_vectors(str(tmp_path / name), NAMES).vectors, TRUE)


def saved(array: np.ndarray) -> bytes:
    path = Path("saved.npy")
    np.save(path, array)
    content = path.read_bytes()
    path.unlink()
    return content


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def fasttext(path: Path) -> None:
    model = FastText(vector_size=3, min_count=1, workers=1, seed=1)
    model.build_vocab([NAMES])
    model.save(str(path))


@pytest.mark.parametrize(
    ("name", "write", "says"),
    [
        ("ft.model", fasttext, "FastText model of gensim's.*save_word2vec_format"),
        ("v.txt", lambda p: p.write_text(LINES, "utf-16"), "UTF-16: save it as UTF-8"),
        ("v.npz", lambda p: np.savez(p, a=TRUE), r"none of which is a \.txt, \.vec or \.bin"),
        ("v.npy", lambda p: np.save(p, TRUE.T), r"\(3, 8\).*as its transpose"),
        ("v.npy", lambda p: np.save(p, TRUE.astype(complex)), "complex64 values|complex128 values"),
        ("v.npy", lambda p: np.save(p, np.array([{}] * 8, dtype=object)), "Python objects; one array"),
        ("v.pkl", lambda p: p.write_bytes(pickle.dumps({"a": TRUE})), "holds a dict; one array"),
        ("v.pkl", lambda p: p.write_bytes(pickle.dumps(TRUE > 1)), "other things than numbers; one array"),
        ("v.txt.gz", lambda p: p.write_bytes(b"\x1f\x8b\x08" + bytes(40)), "get it again"),
    ],
)
def test_what_word_vectors_are_not_is_said_with_the_way_out(
    name: str, write: Callable[[Path], object], says: str
) -> None:
    write(Path(name))
    with pytest.raises(UserError, match=says) as caught:
        attribute_vectors(name, NAMES)
    assert "it is a gzip" not in str(caught.value)


def test_word_vectors_in_place_of_attribute_vectors_name_the_command() -> None:
    Path("v.txt").write_text(LINES)
    with pytest.raises(UserError, match=r"made of them with: python x\.py --source v\.txt"):
        load_attribute_vectors("v.txt", 8, "python x.py")
    with pytest.raises(UserError, match=r"no attribute vectors at n\.npy\. Make them with: python x\.py"):
        load_attribute_vectors("n.npy", 8, "python x.py")


def test_attribute_vectors_are_not_written_under_the_name_of_their_own_record(toy_root: Path) -> None:
    place = toy_root
    (place / "v.txt").write_text(LINES)
    refused(run_here(place, WORDS, "--source", "v.txt", "--out", "v.json"), "v.json", "ends in .pkl")
    assert not (place / "v.json").exists()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"feature_map": np.concatenate([np.ones((50, 12, 3, 3), "f4"), np.zeros((40, 12, 3, 3), "f4")])}, "broke off"),
        ({"feature_map": np.ones((90, 12, 3, 3), "u1")}, "astype('float32')"),
        ({"feature_map": np.ones((90, 12), "f4")}, "maps[:, :, None, None]"),
        ({"labels": np.array([b"ox"] * 90)}, "labels is (90,) of |S2; whole numbers are needed"),
        ({"att": np.array([[b"x"] * 8] * 9)}, "att is (9, 8) of |S1; a matrix of numbers is needed"),
    ],
)
def test_feature_files_of_other_scripts(toy_root: Path, changes: dict[str, np.ndarray], says: str) -> None:
    """Rows of zeros: a script that makes the whole data set first was killed; they would train as black images."""
    features(toy_root / "f.hdf5", **changes)
    refused(run_here(toy_root, DRIVER, *run("--features", "f.hdf5", "--select", "last")), "f.hdf5", says)


def test_complex_numbers_of_matlab_are_named_by_their_variable(tmp_path: Path) -> None:
    base(tmp_path / "c")
    mats(tmp_path / "c", att=np.ones((8, 9), complex))
    refused(run_here(tmp_path / "c", EXTRACT, *NO_FEATURES), "att_splits.mat: att is of complex128", "real numbers")


def test_class_names_as_cells_of_bytes_and_padded(tmp_path: Path) -> None:
    base(tmp_path / "c")
    mats(tmp_path / "c", allclasses_names=cells([f"class{c}   " for c in range(9)]))
    assert run_here(tmp_path / "c", DRIVER, *run("--select", "last"))[0] == 0


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"404: Not Found", "a text that begins '404: Not Found'"),
        (b"\xef\xbb\xbf<!DOCTYPE html>", "a web page"),
        (bytes(5000), "nothing but zeros"),
        (b"\0\0\0\x18ftypheic" + bytes(99), "HEIC"),
    ],
)
def test_what_stands_in_an_images_place_is_called_what_it_is(content: bytes, says: str) -> None:
    Path("a.jpg").write_bytes(content)
    with pytest.raises(ValueError, match=says):
        load_image(Path("a.jpg"), 32)


@pytest.mark.filterwarnings("error")
def test_an_image_without_a_number_is_refused() -> None:
    Image.fromarray(np.full((40, 40), np.nan, np.float32)).save("a.tif")
    with pytest.raises(ValueError, match="no pixel of it is a number"):
        load_image(Path("a.tif"), 32)


@pytest.mark.parametrize("flag", ["--out", "--json", "--export"])
def test_predictions_never_replace_a_photograph(flag: str) -> None:
    Image.new("RGB", (40, 40)).save("a.jpg")
    before = Path("a.jpg").read_bytes()
    refused(run_here(Path(), "predict.py", "nowhere", "a.jpg", flag, "a.jpg"), flag, "a.jpg", "must end in")
    assert Path("a.jpg").read_bytes() == before


@pytest.mark.parametrize(("flag", "name"), [("--out", "attributes.csv"), ("--json", "log.jsonl")])
def test_predictions_never_replace_anything_but_predictions(flag: str, name: str) -> None:
    Image.new("RGB", (40, 40)).save("a.jpg")
    Path(name).write_text("class,black\nox,1\n")
    refused(run_here(Path(), "predict.py", "nowhere", "a.jpg", flag, name), name, "holds no answers", "another name")
    Path(name).write_text("image,class,side,score\n" if flag == "--out" else '{"image": "b.jpg"}\n')
    refused(run_here(Path(), "predict.py", "nowhere", "a.jpg", flag, name), "no folder nowhere")


def test_a_workbook_in_place_of_a_sheet_is_called_one() -> None:
    with zipfile.ZipFile("attributes.csv", "w") as archive:
        archive.writestr("xl/workbook.xml", "x")
    with pytest.raises(UserError, match="zip archive, as workbooks of Excel.*CSV in UTF-8"):
        read_attributes(Path("attributes.csv"))


@pytest.mark.parametrize("closed", [">&- 2>&-", "<&-"])
def test_closed_streams_are_no_obstacle(toy_root: Path, closed: str) -> None:
    command = f"{sys.executable} {ROOT}/core/commands/verify.py w2v/AWA2_attribute.pkl {closed}"
    done = subprocess.run(
        ["bash", "-c", command], cwd=toy_root, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True
    )
    assert done.returncode == 0 and b"Traceback" not in done.stderr, done.stderr


def test_a_limit_of_file_size_is_not_called_a_full_disk(toy_root: Path) -> None:
    command = f"ulimit -f 40; exec {sys.executable} {ROOT}/{EXTRACT} {' '.join(NO_FEATURES)} --device cpu"
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=toy_root,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    refused((done.returncode, done.stdout, done.stderr), "File too large", "ulimit -f")
    assert "make room" not in done.stderr and "ref count" not in done.stderr


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (ModuleNotFoundError("No module named 'h5py'", name="h5py"), "has no h5py: .*requirements.txt"),
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), "ulimit -v"),
    ],
)
def test_a_python_without_the_libraries_is_told_what_to_run(
    capsys: pytest.CaptureFixture[str], error: Exception, says: str
) -> None:
    def fails() -> None:
        raise error

    assert run_cli(fails) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ") and printed.count("\n") == 1
    assert re.search(says, printed), printed


def test_a_module_of_this_program_that_is_missing_is_a_traceback() -> None:
    def fails() -> None:
        raise ModuleNotFoundError("No module named 'core.nothing'", name="core.nothing")

    with pytest.raises(ModuleNotFoundError):
        run_cli(fails)
