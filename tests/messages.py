"""Provoke every message that a user may meet, and print each behind the command that brought it.

    python tests/messages.py            # all of them
    python tests/messages.py device     # those whose name holds a word

tests/test_messages.py reads them in one go: one voice, short, with the way out.
"""

from __future__ import annotations

import os
import pickle
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import scipy.io
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this clone's core, whatever else is installed

from tests.helpers import cells, extraction, run_here, toy_mats, word_vectors

DRIVER, TABLES, GET = "AWA2_ours.py", "reproduce_tables.py", "data/get_data.py"
VERIFY, CONVERT = "core/commands/verify.py", "core/commands/convert.py"
EXTRACT, WORDS = extraction("AWA2"), word_vectors("AWA2")
NO_FEATURES = ["--backbone", "resnet18", "--weights", "random", "--input-size", "64", "--out", "new.hdf5"]
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64 + b"\nsize 251093423\n"
PAGE = b"<!DOCTYPE html><html><head><title>Virus scan warning</title></head></html>"
MATS = "data/xlsa17/data/AWA2"
IMAGES = "data/AWA2/Animals_with_Attributes2"
FEATURES, VECTORS = "data/AWA2/feature_map_ResNet_101_AWA2.hdf5", "w2v/AWA2_attribute.pkl"


@dataclass(frozen=True)
class Case:
    """A message: what is done to a data set that is whole, the command, and words of the way out."""

    name: str
    script: str
    arguments: list[str]
    says: tuple[str, ...]
    prepare: Callable[[Path], object] = lambda place: None


def base(place: Path) -> None:
    """A data set in AWA2's layout: 6 + 3 classes of 10 images, 8 attributes, features in DAZLE's layout, vectors."""
    rng = np.random.default_rng(0)
    mats(place)
    (place / IMAGES).mkdir(parents=True)
    (place / IMAGES / "predicates.txt").write_text("".join(f"{k + 1}\tword{k}\n" for k in range(8)))
    for name in image_names():
        path = place / IMAGES / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(path)
    features(place / FEATURES)
    (place / "w2v").mkdir()
    (place / VECTORS).write_bytes(pickle.dumps(rng.normal(size=(8, 5)).astype("f4"), protocol=2))


def image_names() -> list[str]:
    return [f"JPEGImages/class{i // 10}/{i}.jpg" for i in range(90)]


def mats(place: Path, **changes: object) -> None:
    """res101.mat and att_splits.mat with some variables replaced."""
    files = cells([f"/x/Animals_with_Attributes2/{name}" for name in image_names()])
    toy_mats(place / MATS, **{"image_files": files, **changes})


def features(path: Path, **changes: object) -> None:
    """A feature file in DAZLE's layout, with some datasets replaced."""
    labels, rng = np.repeat(np.arange(9), 10), np.random.default_rng(1)
    rows = np.arange(90).reshape(9, 10)
    content = {
        "feature_map": np.abs(rng.normal(size=(90, 12, 3, 3))).astype("f4"),
        "labels": labels,
        "att": attributes(),
        "trainval_loc": rows[:6, :8].ravel(),
        "test_seen_loc": rows[:6, 8:].ravel(),
        "test_unseen_loc": rows[6:].ravel(),
    } | changes
    with h5py.File(path, "w") as file:
        for key, values in content.items():
            file[key] = values


def attributes() -> np.ndarray:
    """(9,8), those that toy_mats writes."""
    with tempfile.TemporaryDirectory() as folder:
        _, splits = toy_mats(Path(folder))
        return np.ascontiguousarray(scipy.io.loadmat(splits)["att"].T)


def put(name: str, content: bytes) -> Callable[[Path], object]:
    """A file of that content; its folder is made."""

    def prepare(place: Path) -> None:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).unlink(missing_ok=True)
        (place / name).write_bytes(content)

    return prepare


def image(content: bytes) -> Callable[[Path], object]:
    return put(f"{IMAGES}/{image_names()[3]}", content)


def removed(name: str) -> Callable[[Path], object]:
    def prepare(place: Path) -> None:
        path = place / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return prepare


def zipped(place: Path) -> None:
    with zipfile.ZipFile(place / "f.hdf5", "w") as archive:
        archive.writestr("a", b"a")


def array_as(name: str) -> Callable[[Path], object]:
    def prepare(place: Path) -> None:
        with open(place / name, "wb") as handle:
            np.save(handle, np.ones((8, 5), "f4"))

    return prepare


def words_file(text: str, name: str = "v.txt") -> Callable[[Path], object]:
    return put(name, text.encode())


def finished_run(place: Path) -> None:
    code, _, err = run_here(place, DRIVER, "--method", "eszsl", "--device", "cpu", "--select", "last")
    assert code == 0, err
    (path,) = place.glob("results/AWA2/*/eszsl/seed0/metrics.json")
    path.write_text(path.read_text().replace("0.", "1.", 1))


def code_pickle(name: str) -> Callable[[Path], object]:
    return put(name, b"cos\nsystem\n(S'touch OWNED'\ntR.")


def loop(name: str) -> Callable[[Path], object]:
    def prepare(place: Path) -> None:
        (place / name).unlink(missing_ok=True)
        (place / name).symlink_to(Path(name).name)

    return prepare


def pipe(name: str) -> Callable[[Path], object]:
    def prepare(place: Path) -> None:
        (place / name).unlink(missing_ok=True)
        os.mkfifo(place / name)

    return prepare


def folder(name: str) -> Callable[[Path], object]:
    def prepare(place: Path) -> None:
        (place / name).unlink(missing_ok=True)
        (place / name).mkdir()

    return prepare


def run(*more: str) -> list[str]:
    return ["--method", "eszsl", "--device", "cpu", *more]


ROWS = np.arange(90).reshape(9, 10)
LONG = "x" * 100_000
CASES = [
    # flags
    Case("flag unknown", DRIVER, ["--no-such-flag"], ("--no-such-flag", "--help")),
    Case("flag of another method", DRIVER, run("--fusion", "0.5"), ("--fusion", "its settings are")),
    Case("flag shortened", DRIVER, ["--see", "3"], ("--see", "--help")),
    Case("seeds of zero", DRIVER, ["--seeds", "0"], ("--seeds", "at least 1")),
    Case("seed not a number", DRIVER, ["--seed", "one"], ("--seed", "'one'", "whole number")),
    Case("seed endless", DRIVER, ["--seed", LONG], ("--seed", "whole number")),
    Case("method unknown", DRIVER, ["--method", "vmsr"], ("vmsr", "choose from", "vsmr")),
    Case("epochs negative", DRIVER, ["--epochs", "-3"], ("--epochs", "at least 0")),
    Case("beta negative", DRIVER, ["--beta", "-5"], ("--beta", "-5", "must be")),
    Case("learning rate nan", DRIVER, ["--lr", "nan"], ("--lr", "nan", "must be")),
    Case("width zero", DRIVER, ["--method", "transzero", "--width", "0"], ("--width", "must be")),
    Case("balanced 2", DRIVER, ["--method", "dazle", "--balanced", "2"], ("--balanced", "on or off")),
    Case("fusion 7", DRIVER, ["--method", "msdn", "--fusion", "7"], ("--fusion", "between 0 and 1")),
    Case("dropout 2", DRIVER, ["--method", "transzero", "--dropout", "2"], ("--dropout", "must be")),
    Case("batch size zero", DRIVER, ["--batch-size", "0"], ("--batch-size", "at least 1")),
    Case("batch size zero of extraction", EXTRACT, ["--batch-size", "0"], ("--batch-size", "at least 1")),
    Case("limit negative", EXTRACT, ["--limit", "-1"], ("--limit", "at least 1")),
    Case("input size of 8", EXTRACT, ["--input-size", "8"], ("--input-size", "from 32")),
    Case("dtype unknown", EXTRACT, ["--dtype", "half"], ("--dtype", "float16")),
    Case("backbone unknown", EXTRACT, ["--backbone", "resnet1O1"], ("resnet1O1", "resnet101")),
    Case("jobs of zero", TABLES, ["--jobs", "0"], ("--jobs", "at least 1")),
    Case("several data sets, one file", TABLES, ["--features", "f"], ("--features", "--datasets")),
    Case("get unknown", GET, ["ImageNet"], ("ImageNet", "CUB")),
    Case("get an archive of another", GET, ["CUB", "--archive", "a.zip"], ("a.zip", "which are"), put("a.zip", b"")),
    Case("get an archive not there", GET, ["CUB", "--archive", "a.zip"], ("no archive at a.zip",)),
    # devices
    *(
        Case(f"device {name} of {script}", script, ["--device", name, *more], ("--device", name, way))
        for script, more in ((DRIVER, []), (EXTRACT, NO_FEATURES), (TABLES, ["--datasets", "AWA2"]))
        for name, way in (("foo", "choose"), ("cuda:99", "cuda"), ("mps:3", "choose"))
    ),
    # data that are not there, or are others
    Case("no such root", DRIVER, run("--data-root", "nowhere"), ("nowhere", "Looked for", "AWA2.md")),
    Case("no features", DRIVER, run(), ("Make one with", EXTRACT), removed(FEATURES)),
    Case("features named, not there", DRIVER, run("--features", "f.hdf5"), ("Make one with", "--out f.hdf5")),
    Case("no vectors", DRIVER, run(), ("no attribute vectors", WORDS, "--w2v"), removed("w2v")),
    Case("no split file", EXTRACT, NO_FEATURES, ("att_splits.mat", "Looked in", "--data-root"), removed(MATS)),
    Case("no images", EXTRACT, NO_FEATURES, ("images of AWA2", "AWA2.md"), removed("data/AWA2")),
    Case("no attribute names", WORDS, ["--source", "v.txt"], ("images of AWA2", "AWA2.md"), removed(IMAGES)),
    Case("names not there", WORDS, ["--source", "v.txt"], ("--attributes PATH",), removed(f"{IMAGES}/predicates.txt")),
    Case("features of other labels", DRIVER, run(), ("does not belong", "--features", "make it anew"),
         lambda p: features(p / FEATURES, trainval_loc=ROWS[:6, 1:9].ravel(), test_seen_loc=ROWS[:6, [0, 9]].ravel())),
    # files that are not what they seem
    *(
        Case(f"{what} as {name}", script, arguments, says, put(name, content))
        for what, content, way in (("pointer", LFS, "git lfs pull"), ("page", PAGE, "page"), ("nothing", b"", "empty"),
                                   ("zeros", bytes(4096), "zeros"), ("json", b'{"a": 1}', "JSON"),
                                   ("text", b"hello", "not a readable"))
        for name, script, arguments, says in (
            (f"{MATS}/att_splits.mat", EXTRACT, NO_FEATURES, ("att_splits.mat", way)),
            (VECTORS, DRIVER, run(), (VECTORS, way)),
        )
    ),
    *(
        Case(f"{what} as weights", EXTRACT, ["--backbone", "resnet18", "--weights", "w.pth"], ("w.pth", way),
             put("w.pth", content))
        for what, content, way in (("pointer", LFS, "git lfs pull"), ("page", PAGE, "page"), ("nothing", b"", "empty"),
                                   ("text", b"hello", "not a readable"))
    ),
    Case("code as vectors", DRIVER, run(), ("os.system", "not loaded"), code_pickle(VECTORS)),
    Case("code as weights", EXTRACT, ["--backbone", "resnet18", "--weights", "w.pth"], ("os system", "state_dict()"),
         code_pickle("w.pth")),
    Case("array as vectors .pkl", DRIVER, run(), (".npy file", "ending"), array_as(VECTORS)),
    Case("zip as features", DRIVER, run("--features", "f.hdf5"), ("f.hdf5", "zip archive", "unpack it"), zipped),
    Case("page as features", DRIVER, run(), (FEATURES, "page"), put(FEATURES, PAGE)),
    Case("text as features", DRIVER, run(), (FEATURES,), put(FEATURES, b"hello" * 999)),
    Case("folder as features", DRIVER, run("--features", "data"), ("data", "folder")),
    Case("folder as vectors", DRIVER, run("--w2v", "data"), ("data", "folder")),
    Case("folder as weights", EXTRACT, ["--backbone", "resnet18", "--weights", "w.pth"], ("w.pth", "folder"),
         folder("w.pth")),
    Case("folder as split file", EXTRACT, NO_FEATURES, ("att_splits.mat", "Looked in"),
         folder(f"{MATS}/att_splits.mat")),
    Case("loop as features", DRIVER, run(), (FEATURES, "symbolic links"), loop(FEATURES)),
    Case("loop as vectors", DRIVER, run("--w2v", "v.pkl"), ("v.pkl", "leads nowhere"), loop("v.pkl")),
    Case("pipe as vectors", DRIVER, run("--w2v", "v.pkl"), ("v.pkl", "a pipe"), pipe("v.pkl")),
    Case("pipe as features", DRIVER, run("--features", "f.hdf5"), ("f.hdf5",), pipe("f.hdf5")),
    # what .mat files hold
    Case("names that are formulas", EXTRACT, NO_FEATURES, ("is no class name",),
         lambda p: mats(p, allclasses_names=cells(["=1+1", *"bcdefghi"]))),
    Case("names endless", EXTRACT, NO_FEATURES, ("allclasses_names",),
         lambda p: mats(p, allclasses_names=cells([LONG, LONG, *"cdefghi"]))),
    Case("names with control characters", EXTRACT, NO_FEATURES, ("is no class name",),
         lambda p: mats(p, allclasses_names=cells(["a\x1b[2J", *"bcdefghi"]))),
    Case("images of another data set", EXTRACT, NO_FEATURES, ("another data set",),
         lambda p: mats(p, image_files=cells([f"/x/CUB/{i}.jpg" for i in range(90)]))),
    Case("paths that climb", EXTRACT, NO_FEATURES, ("names no file below",),
         lambda p: mats(p, image_files=cells([f"/x/Animals_with_Attributes2/../{i}.jpg" for i in range(90)]))),
    Case("splits that overlap", EXTRACT, NO_FEATURES, ("share", "not a usable split"),
         lambda p: mats(p, test_seen_loc=ROWS[:6, 7:].reshape(-1, 1) + 1)),
    Case("splits from 0", EXTRACT, NO_FEATURES, ("counted from 1",), lambda p: mats(p, test_unseen_loc=ROWS[6:] + 31)),
    Case("a class without test images", EXTRACT, NO_FEATURES, ("no test image", "test_seen_loc"),
         lambda p: mats(p, test_seen_loc=ROWS[:5, 8:].reshape(-1, 1) + 1)),
    Case("NaN among attributes", EXTRACT, NO_FEATURES, ("NaN", "attribute 3"),
         lambda p: mats(p, att=np.where(np.arange(72).reshape(8, 9) == 20, np.nan, 1.0))),
    Case("a variable that lacks", EXTRACT, NO_FEATURES, ("lacks att",), lambda p: mats(p, att=None)),
    Case("a struct for attributes", EXTRACT, NO_FEATURES, ("struct", "matrix of numbers"),
         lambda p: mats(p, att={"a": 1})),
    Case("attributes of other classes", EXTRACT, NO_FEATURES, ("attributes x classes is expected",),
         lambda p: mats(p, att=np.ones((8, 7)), original_att=np.ones((8, 7)))),
    # what feature files hold
    Case("channels last", DRIVER, run(), ("np.transpose",),
         lambda p: features(p / FEATURES, feature_map=np.ones((90, 3, 3, 12), "f4"))),
    Case("NaN among features", DRIVER, run(), ("NaN", "Make it anew with"),
         lambda p: features(p / FEATURES, feature_map=np.full((90, 12, 3, 3), np.nan, "f4"))),
    Case("labels missing", DRIVER, run(), ("lacks labels",), lambda p: without(p / FEATURES, "labels")),
    Case("one training image", DRIVER, run("--method", "vsmr", "--features", "one.hdf5", "--data-root", "one"),
         ("'class0'", "one training image", "--select last"), lambda p: one_image(p)),
    Case("vectors of another data set", DRIVER, run(), ("(8, V)",), put(VECTORS, pickle.dumps(np.ones((9, 5))))),
    Case("vectors of zeros", DRIVER, run(), ("zeros", "make the vectors again"),
         put(VECTORS, pickle.dumps(np.zeros((8, 5))))),
    Case("vectors of NaN", DRIVER, run(), ("not finite", "make the vectors again"),
         put(VECTORS, pickle.dumps(np.full((8, 5), np.nan)))),
    # word vectors
    Case("words unknown", WORDS, ["--source", "glove"], ("glove", "glove-wiki-gigaword-300")),
    Case("fastText model", WORDS, ["--source", "cc.en.bin"], (".vec",), put("cc.en.bin", b"\xba\x16\x4f\x2f" * 99)),
    Case("words of no vectors", WORDS, ["--source", "v.txt"], ("no word vectors", "Give"), words_file("a b c\n" * 9)),
    Case("words of none of ours", WORDS, ["--source", "v.txt"], ("word0",), words_file("cat 1 2 3\n" * 9)),
    Case("words cut short", WORDS, ["--source", "v.txt"], ("truncated",), words_file("99 3\nword0 1 2 3\n")),
    Case("words of nan", WORDS, ["--source", "v.txt"], ("word0",), words_file("word0 nan 2 3\n" * 9)),
    Case("code as words", WORDS, ["--source", "v.kv"], ("os.system", "not loaded"), code_pickle("v.kv")),
    Case("folder as words", WORDS, ["--source", "data"], ("data", "file")),
    Case("ready vectors of another shape", WORDS, ["--source", "v.pkl"], ("(8, V)",),
         put("v.pkl", pickle.dumps(np.ones((9, 5))))),
    Case("names not numbered", WORDS, ["--source", "v.txt"], ("1 name",),
         put(f"{IMAGES}/predicates.txt", b"black\nwhite\n")),
    # images
    *(
        Case(f"image of {what}", EXTRACT, NO_FEATURES, (image_names()[3], says, "run the same command again"),
             image(content))
        for what, content, says in (("a page", PAGE, "web page"), ("nothing", b"", "empty"),
                                    ("noise", b"\xff\xd8\xff" + bytes(99), "3.jpg"), ("lfs", LFS, "Git LFS pointer"))
    ),
    Case("image that is a folder", EXTRACT, NO_FEATURES, ("not a file", "run the same command again"),
         folder(f"{IMAGES}/{image_names()[3]}")),
    Case("image that is a pipe", EXTRACT, NO_FEATURES, ("not a file",), pipe(f"{IMAGES}/{image_names()[3]}")),
    Case("image that is a loop", EXTRACT, NO_FEATURES, ("symbolic links",), loop(f"{IMAGES}/{image_names()[3]}")),
    # places to write to
    Case("results below a file", DRIVER, run("--out", "file/r"), ("file", "--out"), put("file", b"")),
    Case("results in /proc", DRIVER, run("--out", "/proc/r"), ("/proc/r", "--out")),
    Case("results of an impossible name", DRIVER, run("--out", "r" * 300), ("too long", "--out")),
    Case("features below a file", EXTRACT, [*NO_FEATURES[:-1], "file/f.hdf5"], ("f.hdf5: Not a directory", "--out"),
         put("file", b"")),
    Case("features in a folder", EXTRACT, [*NO_FEATURES[:-1], "data"], ("data", "folder")),
    Case("vectors below a file", WORDS, ["--source", "v.txt", "--out", "file/v.pkl"], ("choose another place",),
         lambda p: (put("file", b"")(p), words_file("".join(f"word{k} 1 2 3\n" for k in range(8)))(p))),
    # results
    Case("results changed by hand", DRIVER, run("--select", "last"), ("metrics.json", "delete it"), finished_run),
    Case("results of another run", DRIVER, run("--select", "last", "--regularise-x", "3"), ("--no-resume",),
         lambda p: (finished_run(p), undo(p))),
    Case("no results", TABLES, ["--tables-only"], ("summary.csv", "--collect")),
    Case("nothing to collect", TABLES, ["--collect"], ("no finished run", "metrics.json")),
    Case("verify nothing", VERIFY, ["nowhere"], ("no file or folder at nowhere",)),
    Case("verify another kind", VERIFY, ["a.txt"], (".hdf5", ".pkl"), put("a.txt", b"a")),
    Case("convert nothing", CONVERT, ["a.hdf5", "b.hdf5", "--layout", "nhwc"], ("no feature file at a.hdf5",)),
    Case("convert text", CONVERT, ["a.hdf5", "b.hdf5", "--layout", "nhwc"], ("a.hdf5",), put("a.hdf5", b"text")),
    Case("convert without layout", CONVERT, ["a.hdf5", "b.hdf5"], ("--layout", "--help")),
]  # fmt: skip


def without(path: Path, key: str) -> None:
    with h5py.File(path, "r+") as file:
        del file[key]


def one_image(place: Path) -> None:
    """A data root of its own, whose first class has one training image."""
    loc = np.r_[ROWS[0, :1], ROWS[1:6, :8].ravel()]
    features(place / "one.hdf5", trainval_loc=loc)
    shutil.move(place / "data", place / "one")
    shutil.copytree(place / "one" / "xlsa17", place / "data" / "xlsa17")
    mats(place, trainval_loc=loc[:, None] + 1)
    shutil.rmtree(place / "one" / "xlsa17")
    shutil.move(place / "data" / "xlsa17", place / "one" / "xlsa17")
    shutil.copytree(place / "w2v", place / "one" / "w2v")


def undo(place: Path) -> None:
    """What finished_run changed, so that the result is whole again."""
    (path,) = place.glob("results/AWA2/*/eszsl/seed0/metrics.json")
    path.write_text(path.read_text().replace("1.", "0.", 1))


def provoke(case: Case, made: Path, place: Path) -> tuple[int, str, str]:
    """Exit code, output, and what stands on standard error from "error: " on."""
    shutil.copytree(made, place, symlinks=True)
    case.prepare(place)
    code, out, err = run_here(place, case.script, *case.arguments)
    begin = err.find("error: ")
    return code, out, err[begin:].strip() if begin >= 0 else err


def main() -> None:
    """Print them."""
    words = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder, "made")
        made.mkdir()
        base(made)
        for i, case in enumerate(CASES):
            if words and not any(word in case.name for word in words):
                continue
            try:
                code, _, said = provoke(case, made, Path(folder, str(i)))
            except Exception as error:
                code, said = -1, f"TRACEBACK {type(error).__name__}: {str(error)[:500]}"
            shown = " ".join(a if len(a) < 60 else a[:20] + "..." for a in case.arguments)
            missing = [word for word in case.says if word not in said]
            flaw = "" if code == 2 and not missing else f"   <-- exit code {code}, does not say {missing}"
            sys.stdout.write(f"# {case.name}{flaw}\n$ python {case.script} {shown}\n{said[:1500]}\n\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
