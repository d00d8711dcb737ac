"""The four drivers to the end, through the real scripts, on small images under xlsa17's real names; and what a user
sees where something is missing or damaged."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.io
from PIL import Image
from safetensors.torch import save_file

from core.datasets.registry import CUB50_SEEN, CUB50_UNSEEN, DATASETS
from core.features.backbones import build_backbone

ROOT = Path(__file__).resolve().parents[1]
SPLITS = ("trainval_loc", "test_seen_loc", "test_unseen_loc")
METRICS = ("T1", "U", "S", "H", "AUSUC")
STAGED = {"classes-per-batch": 8, "images-per-class": 4, "hidden": 64, "predictor-epochs": 2, "semantic-epochs": 2}


@dataclass(frozen=True)
class Part:
    """How much of a data set is taken, and what its features are made with."""

    images: tuple[int, int, int]  # of each class in SPLITS
    backbone: str
    input_size: int
    grid: tuple[int, int, int]  # (D,h,w) of its features
    classes: tuple[int, ...] | None = None  # official numbers (CUB's, in front of its class names); None: all


PARTS = {
    "AWA2": Part((3, 1, 2), "squeezenet1_1", 224, (1000, 13, 13)),
    "CUB": Part((10, 3, 13), "mobilenet_v3_small", 224, (576, 7, 7), CUB50_SEEN + CUB50_UNSEEN),
    "SUN": Part((2, 1, 1), "shufflenet_v2_x0_5", 96, (1024, 3, 3)),
}
SMALL = Part((2, 1, 1), "squeezenet1_1", 64, (1000, 3, 3))
RUNS = {
    "AWA2": ("AWA2_ours.py", "AWA2", ()),
    "CUB": ("CUB50_ours.py", "CUB", ()),
    "CUB50": ("CUB50_ours.py", "CUB", ("--split", "cub50")),
    "SUN": ("SUN_ours.py", "SUN", ()),
}


@pytest.fixture(scope="module")
def real(shared: Path) -> Path:
    if not (shared / "xlsa17").is_dir() or not (shared / "w2v").is_dir():
        pytest.skip("xlsa17's split files and the published vectors are not in ../shared/data")
    return shared


def lay_out(real: Path, place: Path, name: str, part: Part) -> dict[str, set[str]]:
    """Write place/data/: a seeded subset of xlsa17's two files and an image at each path it names.

    Returns the image paths (as in res101.mat) of each split.
    """
    source = real / "xlsa17" / "data" / name
    images, splits = (scipy.io.loadmat(source / f"{file}.mat") for file in ("res101", "att_splits"))
    labels = images["labels"].ravel()
    class_names = [c.item() for c in splits["allclasses_names"].ravel()]
    kept = np.arange(1, len(class_names) + 1)
    if part.classes is not None:
        kept = np.array([c for c in kept if int(class_names[c - 1].split(".")[0]) in part.classes])
    rng = np.random.default_rng(0)
    rows = {key: np.empty(0, dtype=np.int64) for key in SPLITS}
    for key, count in zip(SPLITS, part.images, strict=True):
        loc = splits[key].ravel().astype(np.int64)
        for c in kept:
            rows[key] = np.append(rows[key], rng.permutation(loc[labels[loc - 1] == c])[:count])
    every = np.sort(np.concatenate(list(rows.values())))  # counted from 1, as the files count
    files = images["image_files"][every - 1]
    folder = place / "data" / "xlsa17" / "data" / name
    folder.mkdir(parents=True)
    new_labels = np.searchsorted(kept, labels[every - 1]) + 1
    scipy.io.savemat(folder / "res101.mat", {"labels": new_labels[:, None], "image_files": files})
    content = {key: splits[key][:, kept - 1] for key in ("att", "original_att")}
    content["allclasses_names"] = splits["allclasses_names"][kept - 1]
    content |= {key: np.searchsorted(every, np.sort(loc))[:, None] + 1 for key, loc in rows.items()}
    scipy.io.savemat(folder / "att_splits.mat", content)

    paths = [f.item() for f in files.ravel()]
    colours = np.random.default_rng(1).integers(40, 216, (len(class_names) + 1, 3))
    for path, label in zip(paths, new_labels, strict=True):
        target = place / "data" / DATASETS[name].folders[0] / below(path, name)
        target.parent.mkdir(parents=True, exist_ok=True)
        pixels = colours[label] + rng.integers(-40, 40, (36, 44, 3))
        Image.fromarray(pixels.astype(np.uint8)).save(target, format="JPEG")
    return {key: {paths[i] for i in np.searchsorted(every, loc)} for key, loc in rows.items()}


def below(path: str, name: str) -> str:
    """An xlsa17 image path from below the data set's own folder on."""
    return path.split(f"/{DATASETS[name].anchor}/")[1].lstrip("/")


def weights_file(place: Path, backbone: str) -> Path:
    """Random weights of a torchvision network in a local file."""
    path = place / f"{backbone}.safetensors"
    save_file(build_backbone(backbone, "random").network.state_dict(), path)
    return path


def run_here(place: Path, script: str, *arguments: str | Path) -> tuple[int, str, str]:
    """Run a script of this repository in this process, in folder ``place``: (exit code, stdout, stderr)."""
    out, err = io.StringIO(), io.StringIO()
    root, handler = logging.getLogger(), logging.StreamHandler(err)
    level = root.level
    with (
        contextlib.chdir(place),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(sys, "argv", [script, *map(str, arguments)])
        root.addHandler(handler)  # logging is set up already where pytest runs, so the scripts' own set-up is void
        root.setLevel(logging.INFO)
        try:
            runpy.run_path(str(ROOT / script), run_name="__main__")
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        finally:
            root.removeHandler(handler)
            root.setLevel(level)
    return code, out.getvalue(), err.getvalue()


def run_apart(place: Path, script: str, *arguments: str | Path) -> tuple[int, str, str]:
    """The same in a process of its own: exactly what a user sees."""
    done = subprocess.run(
        [sys.executable, str(ROOT / script), *map(str, arguments)],
        cwd=place,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def refused(result: tuple[int, str, str], *said: str) -> str:
    """Check that a command ended with an error that says all of ``said`` and shows no traceback; the message."""
    code, out, err = result
    assert code == 2, (code, err)
    assert "Traceback" not in out + err
    message = err[err.index("error: ") :]
    for words in said:
        assert words in message, message
    return message


def extraction(name: str) -> str:
    return f"extract_feature/extract_feature_map_ResNet_101_{name}.py"


Maker = Callable[[str], tuple[Path, dict[str, set[str]]]]


@pytest.fixture(scope="module")
def made(real: Path, tmp_path_factory: pytest.TempPathFactory) -> Maker:
    """Per data set, once: images, vectors and features made by the repository's scripts; the folder and the splits."""
    done: dict[str, tuple[Path, dict[str, set[str]]]] = {}

    def make(name: str) -> tuple[Path, dict[str, set[str]]]:
        if name in done:
            return done[name]
        place, part = tmp_path_factory.mktemp(name), PARTS[name]
        splits = lay_out(real, place, name, part)
        names = real / "attributes" / name
        code, _, err = run_here(
            place,
            f"extract_feature/extract_attribute_w2v_{name}.py",
            "--source",
            real / "w2v" / f"{name}_attribute.pkl",
            "--attributes",
            names,
        )
        assert code == 0, err
        weights = weights_file(place, part.backbone)
        options = ["--backbone", part.backbone, "--weights", weights, "--input-size", part.input_size]
        code, _, err = run_here(place, extraction(name), *options, "--device", "cpu")
        assert code == 0, err
        done[name] = place, splits
        return done[name]

    return make


@pytest.mark.parametrize("name", PARTS)
def test_the_feature_file_says_what_xlsa17_says(made: Maker, name: str) -> None:
    place, splits = made(name)
    part = PARTS[name]
    folder = place / "data" / DATASETS[name].source
    files = [p.name for p in folder.iterdir() if p.is_file()]
    assert files == [f"feature_map_{part.backbone}_{name}.hdf5"]  # no .partial, no .lock
    with h5py.File(folder / files[0]) as file:
        paths = list(file["image_files"].asstr()[()])
        classes = list(file["allclasses_names"].asstr()[()])
        assert file["feature_map"].shape == (sum(map(len, splits.values())), *part.grid)
        assert file["feature_map"].dtype == np.float16 and file.attrs["complete"]
        for key in SPLITS:
            assert {paths[row] for row in file[key][()]} == {below(p, name) for p in splits[key]}
        plain = [re.sub(r"[/_]", "", p.lower()) for p in paths]  # SUN: airport/terminal of class airport_terminal
        assert all(re.sub("_", "", classes[y].lower()) in p for y, p in zip(file["labels"][()], plain, strict=True))
        assert file["w2v_att"].shape == (file["att"].shape[1], 300)
        # every map differs from the next: images were not mixed up or left out
        first = file["feature_map"][:40].reshape(40, -1)
        assert first.any(axis=1).all() and len(np.unique(first, axis=0)) == 40


def finite_shares(values: dict[str, float], keys: Iterable[str]) -> bool:
    return all(np.isfinite(values[k]) and 0 <= values[k] <= 1 for k in keys)


@pytest.mark.parametrize("method", ["dazle", "vsmr-staged", "vsmr"])
@pytest.mark.parametrize("run", RUNS)
def test_a_driver_runs_to_the_end(made: Maker, run: str, method: str) -> None:
    script, source, flags = RUNS[run]
    place, _ = made(source)
    part = PARTS[source]
    counts = DATASETS["CUB50" if source == "CUB" else run].counts  # CUB's part: 40+10 classes in either split
    assert counts is not None
    flags = (*flags, "--method", method, "--epochs", "1", "--seeds", "1")
    if method == "vsmr-staged":  # its recipe takes minutes
        flags += tuple(f"--{name}={value}" for name, value in STAGED.items())
    code, out, err = run_here(place, script, *flags)
    assert code == 0, err

    folder = place / "results" / run / method
    result = json.loads((folder / "seed0" / "metrics.json").read_text())
    assert finite_shares(result["standard"], METRICS) and np.isfinite(result["standard"]["gamma"])
    assert result["chosen"]["epochs"] in (0, 1) and finite_shares(result["chosen"]["validation"], METRICS)
    assert pd.read_csv(folder / "seed0" / "history.csv")["epoch"].iloc[-1] == result["chosen"]["epochs"]
    assert finite_shares(result["selected_on_test"], METRICS)
    assert result["config"]["features"]["backbone"] == part.backbone

    per_class = pd.read_csv(folder / "seed0" / "per_class.csv")
    assert per_class["side"].value_counts().to_dict() == {"seen": counts.seen, "unseen": counts.unseen}
    means = per_class.groupby("side")["accuracy"].mean()
    assert means["seen"] == pytest.approx(result["standard"]["S"], abs=1e-9)
    assert means["unseen"] == pytest.approx(result["standard"]["U"], abs=1e-9)

    note = f"a subset of {run}, numbers do not compare with the literature"
    assert any(line.startswith("note: ") and note in line for line in err.splitlines())  # before training
    assert any(line.startswith("note: ") and note in line for line in out.splitlines())  # under the table
    table = (folder / "table.md").read_text()
    assert table in out
    regions = part.grid[1] * part.grid[2]
    assert table.startswith(f"## {run}, features {part.backbone}, {regions} regions") and f": {method}\n" in table
    assert f"| **{method}** | {100 * result['standard']['T1']:.1f} |" in table and "SELECTED ON TEST" in table
    assert ("PUBLISHED PROCEDURE" in table) == (method == "vsmr-staged")
    assert "| TransZero |" not in table and ("are not shown" in table) == (run != "CUB50")  # subsets
    for file in ("config.json", "history.csv", "history_validation.csv", "confusion.csv", "checkpoint.safetensors"):
        assert (folder / "seed0" / file).stat().st_size
    with Image.open(folder / "attention.png") as figure:
        assert min(figure.size) > 300


@pytest.mark.parametrize("name", PARTS)
def test_missing_data_are_named_with_what_makes_them(tmp_path: Path, name: str) -> None:
    script = next(s for s, source, _ in RUNS.values() if source == name)
    apart = run_apart if name == "AWA2" else run_here  # one in a process of its own is enough
    said = f"looked for {Path('data') / name}/feature_map_*_{name}.hdf5", f"python {extraction(name)}"
    refused(apart(tmp_path, script), *said)
    refused(apart(tmp_path, extraction(name)), f"data/xlsa17/data/{name}", f"See data/{name}.md")
    assert not list(tmp_path.iterdir())


def test_missing_images_are_named(real: Path, tmp_path: Path) -> None:
    lay_out(real, tmp_path, "AWA2", SMALL)
    folder = tmp_path / "data" / "AWA2" / "Animals_with_Attributes2"
    shutil.rmtree(folder)
    refused(run_here(tmp_path, extraction("AWA2")), str(folder.relative_to(tmp_path)), "See data/AWA2.md")
    folder.mkdir()
    refused(run_here(tmp_path, extraction("AWA2")), "none of the 130 images", "JPEGImages/antelope/antelope_1")
    assert not list((tmp_path / "data" / "AWA2").glob("feature_map*"))


@pytest.fixture
def small(real: Path, tmp_path: Path) -> tuple[Path, list[str | Path]]:
    """A folder with 130 AWA2 images, and the flags of a fast extraction."""
    lay_out(real, tmp_path, "AWA2", SMALL)
    weights = weights_file(tmp_path, SMALL.backbone)
    flags = ["--backbone", SMALL.backbone, "--weights", weights.name, "--input-size", str(SMALL.input_size)]
    return tmp_path, [*flags, "--device", "cpu"]


def test_a_corrupt_image_is_listed_and_no_final_file_is_left(small: tuple[Path, list[str | Path]]) -> None:
    place, flags = small
    bad = sorted((place / "data" / "AWA2").rglob("*.jpg"))[50]
    content = bad.read_bytes()
    bad.write_bytes(content[: len(content) // 2])
    result = run_apart(place, extraction("AWA2"), *flags)
    shown = str(bad.relative_to(place))
    refused(result, "1 of 130 images could not be read", shown, "Replace them and run the same command again")
    final = place / "data" / "AWA2" / f"feature_map_{SMALL.backbone}_AWA2.hdf5"
    assert not final.exists()
    report = final.with_name(final.name + ".partial.bad_images.txt")
    assert [line.split(": ")[0] for line in report.read_text().splitlines()] == [shown]
    refused(run_here(place, "AWA2_ours.py"), "no feature file", f"python {extraction('AWA2')}")
    bad.write_bytes(content)
    code, _, err = run_here(place, extraction("AWA2"), *flags)
    assert code == 0, err
    assert [p.name for p in final.parent.iterdir() if p.is_file()] == [final.name]


def test_a_half_written_feature_file_is_refused(small: tuple[Path, list[str | Path]]) -> None:
    place, flags = small
    assert run_here(place, extraction("AWA2"), *flags, "--limit", "64")[0] == 0
    final = place / "data" / "AWA2" / f"feature_map_{SMALL.backbone}_AWA2.hdf5"
    partial = final.with_name(final.name + ".partial")
    assert partial.exists() and not final.exists()
    command = f"python {extraction('AWA2')}"
    refused(run_apart(place, "AWA2_ours.py"), "no feature file", command)
    shown = final.relative_to(place)
    refused(run_here(place, "AWA2_ours.py", "--features", shown), str(shown), f"{command} --out {shown}")

    shutil.copy(partial, final)  # as if someone had renamed it
    refused(run_here(place, "AWA2_ours.py"), str(shown), "not complete", "extraction again")
    refused(run_here(place, extraction("AWA2"), *flags), str(shown))  # nor does the extraction take it for done
    final.write_bytes(partial.read_bytes()[:-5000])  # a copy that broke off
    refused(run_here(place, "AWA2_ours.py"), str(shown), "truncated", "extract it again")
    final.unlink()

    code, _, err = run_here(place, extraction("AWA2"), *flags)
    assert code == 0, err
    damaged = bytearray(final.read_bytes())
    with h5py.File(final) as file:
        start = file["feature_map"].id.get_chunk_info(17).byte_offset
    damaged[start + 999] ^= 4
    final.write_bytes(damaged)
    vectors = place / "vectors.pkl"
    np.random.default_rng(0).standard_normal((85, 300)).astype(np.float32).dump(vectors)
    said = str(shown), "row 17", "JPEGImages/", "damaged", "extract it again"
    refused(run_here(place, "AWA2_ours.py", "--w2v", vectors), *said)
    assert not (place / "results").exists()
