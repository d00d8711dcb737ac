"""The messages that users meet most, each with the command that brings it; test_messages.py reads them."""

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from core.datasets.registry import AWA2
from core.datasets.xlsa17 import read_metadata
from tests.helpers import extraction, run_here, word_vectors
from tests.helpers_features import dazle, make_toy

DRIVER, EXTRACT, WORDS = "AWA2_ours.py", extraction("AWA2"), word_vectors("AWA2")
NO_FEATURES = ["--backbone", "resnet18", "--weights", "random", "--input-size", "64", "--out", "new.hdf5"]
PAGE = b"<!DOCTYPE html><html><head><title>Virus scan warning</title></head></html>"
MATS, IMAGES = "data/xlsa17/data/AWA2", "data/AWA2/Animals_with_Attributes2"
FEATURES, VECTORS = "data/AWA2/feature_map_ResNet_101_AWA2.hdf5", "w2v/AWA2_attribute.pkl"
ROWS = np.arange(90).reshape(9, 10)  # images of each class


def run(*more: str) -> list[str]:
    return ["--method", "eszsl", "--device", "cpu", *more]


def base(place: Path) -> None:
    """A data set in AWA2's layout: 6 + 3 classes of 10 images, 8 attributes, features in DAZLE's layout, vectors."""
    make_toy(place / "data", AWA2)
    (place / IMAGES / "predicates.txt").write_text("".join(f"{k + 1}\tword{k}\n" for k in range(8)))
    features(place)
    put(VECTORS, pickle.dumps(np.random.default_rng(0).normal(size=(8, 5)).astype("f4")))(place)


def features(place: Path, **changes: object) -> None:
    """A feature file in DAZLE's layout, with some datasets replaced."""
    plain = np.abs(np.random.default_rng(1).normal(size=(90, 12, 3, 3))).astype("f4")
    dazle(place / FEATURES, read_metadata(place / "data", AWA2), **{"feature_map": plain, **changes})


def put(name: str, content: bytes) -> Callable[[Path], object]:
    """A file of that content in place of what is there."""

    def prepare(place: Path) -> None:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(content)

    return prepare


def removed(name: str) -> Callable[[Path], object]:
    return lambda place: (place / name).rename(place / "elsewhere")


class Case(NamedTuple):
    """What is asked of a data set that is whole but for ``prepare``, and words that the message must hold."""

    name: str
    script: str
    arguments: list[str]
    says: tuple[str, ...]
    prepare: Callable[[Path], object] = lambda place: None


CASES = [
    # flags
    Case("value out of range", DRIVER, ["--ridge", "-5"], ("--ridge", "-5", "must be")),
    Case("method unknown", DRIVER, ["--method", "vmsr"], ("vmsr", "choose from", "vsmr")),
    Case("backbone unknown", EXTRACT, ["--backbone", "resnet1O1"], ("resnet1O1", "resnet101")),
    # what is not there, with the command that makes it
    Case("no data", DRIVER, run("--data-root", "nowhere"), ("nowhere", "Make one")),
    Case("no features", DRIVER, run(), ("Make one", EXTRACT), removed(FEATURES)),
    Case("no vectors", DRIVER, run(), ("no attribute vectors", WORDS, "--w2v"), removed("w2v")),
    Case("no split", EXTRACT, NO_FEATURES, ("att_splits.mat", "Looked in", "--data-root"), removed(MATS)),
    Case("no images", EXTRACT, NO_FEATURES, ("images of AWA2", "AWA2.md"), removed("data/AWA2")),
    Case("no attribute names", WORDS, ["--source", "v.txt"], ("--attributes",), removed(f"{IMAGES}/predicates.txt")),
    # files that are not what they seem
    Case("page as features", DRIVER, run(), (FEATURES, "page"), put(FEATURES, PAGE)),
    Case("folder as features", DRIVER, run("--features", "data"), ("data", "folder")),
    Case("page as image", EXTRACT, NO_FEATURES, ("c1/3.jpg", "run the same"), put(f"{IMAGES}/c1/3.jpg", PAGE)),
    # files that hold something else
    Case("features of another split", DRIVER, run(), ("does not belong", "--features"),
         lambda p: features(p, trainval_loc=ROWS[:6, 1:9].ravel(), test_seen_loc=ROWS[:6, [0, 9]].ravel())),
    Case("features below a file", EXTRACT, [*NO_FEATURES[:-1], "file/f.hdf5"], ("f.hdf5", "--out"), put("file", b"")),
]  # fmt: skip


def provoke(case: Case, made: Path, place: Path) -> tuple[int, str, str]:
    """Exit code, output, and what stands on standard error from "error: " on."""
    shutil.copytree(made, place)
    case.prepare(place)
    code, out, err = run_here(place, case.script, *case.arguments)
    return code, out, err[max(err.find("error: "), 0) :].strip()
