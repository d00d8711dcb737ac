"""The four drivers to the end, through the real scripts, on small images under xlsa17's real names; and what a user
sees where something is missing or damaged."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest

from core.datasets.registry import DATASETS
from core.features.feature_file import FeatureFile
from tests.helpers import extraction, refused, run_apart, run_here, weights_file
from tests.helpers_predict import SHORT
from tests.helpers_xlsa17 import PARTS, SPLITS, Maker, Part, below, class_names, draw, paint

METRICS = ("T1", "U", "S", "H", "AUSUC")
METHODS = ("dazle", "vsmr", "vsmr-staged")
SMALL = Part((2, 1, 1), "shufflenet_v2_x0_5", 64, (1024, 2, 2))
RUNS = {
    "AWA2": ("AWA2_ours.py", "AWA2", ()),
    "CUB": ("CUB50_ours.py", "CUB", ()),
    "CUB50": ("CUB50_ours.py", "CUB", ("--split", "cub50")),
    "SUN": ("SUN_ours.py", "SUN", ()),
}
# every run and every method, and each of them once with a page: each pair of them takes seconds
PAIRS = [*(("AWA2", method) for method in METHODS), ("CUB", "vsmr"), ("CUB50", "vsmr-staged"), ("SUN", "dazle")]
PAGED = {("AWA2", "dazle"), *PAIRS[3:]}


@pytest.mark.parametrize("name", PARTS)
def test_the_feature_file_says_what_xlsa17_says(made: Maker, name: str) -> None:
    place, drawn = made(name)
    part, splits = PARTS[name], drawn.splits
    folder = place / "data" / DATASETS[name].source
    files = [p.name for p in folder.iterdir() if p.is_file() and p.name != DATASETS[name].attribute_file]
    assert files == [f"feature_map_{part.backbone}_{part.input_size}px_{name}.hdf5"]  # no .partial, no .lock
    with h5py.File(folder / files[0]) as file:
        paths = list(file["image_files"].asstr()[()])
        classes = list(file["allclasses_names"].asstr()[()])
        assert file["feature_map"].shape == (drawn.images, *part.grid)
        assert file["feature_map"].dtype == np.float16
        for key in SPLITS:
            assert {paths[row] for row in file[key][()]} == {below(p, name) for p in splits[key]}
        plain = [re.sub(r"[/_]", "", p.lower()) for p in paths]  # SUN: airport/terminal of class airport_terminal
        assert all(re.sub("_", "", classes[y].lower()) in p for y, p in zip(file["labels"][()], plain, strict=True))
        # every map differs from the next: images were not mixed up or left out
        first = file["feature_map"][:40].reshape(40, -1)
        assert first.any(axis=1).all() and len(np.unique(first, axis=0)) == 40


def finite_shares(values: dict[str, float], keys: Iterable[str]) -> bool:
    return all(np.isfinite(values[k]) and 0 <= values[k] <= 1 for k in keys)


@pytest.mark.parametrize(("run", "method"), PAIRS)
def test_a_driver_runs_to_the_end(made: Maker, run: str, method: str) -> None:
    script, source, flags = RUNS[run]
    place, _ = made(source)
    part = PARTS[source]
    counts = DATASETS[run].counts
    assert counts is not None
    paged = (run, method) in PAGED
    more = (*SHORT[method], *(["--page"] if paged else []))
    code, out, err = run_here(place, script, *flags, "--method", method, "--seeds", "1", *more)
    assert code == 0, err

    (folder,) = (place / "results" / run).glob(f"*/{method}")  # the folder between names the features
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
    assert sum(note in line for line in (out + err).splitlines()) == 1  # said, and not twice
    table = (folder / "table.md").read_text()
    assert table in out
    page = folder / "page"
    assert (f"page: {page.relative_to(place)}" in out) == (page / "index.html").is_file() == paged
    assert (0 < len(list((page / "images").glob("*.jpg"))) <= 200) == paged
    heading = table.splitlines()[0]
    assert all(said in heading for said in (run, method, part.backbone, f"{part.grid[1]}x{part.grid[2]}"))
    row = next(line for line in table.splitlines() if re.match(rf"\| (\*\*)?{method}[ *]", line))
    assert row.split(" | ")[1] == f"{100 * result['standard']['T1']:.1f}"
    assert "SELECTED ON TEST" in table and "(as published)" not in table
    assert ("PUBLISHED PROCEDURE" in table) == (method == "vsmr-staged")
    for file in ("config.json", "history.csv", "history_validation.csv", "confusion.csv", "checkpoint.safetensors"):
        assert (folder / "seed0" / file).stat().st_size


@pytest.mark.parametrize("name", PARTS)
def test_missing_data_are_named_with_what_makes_them(tmp_path: Path, name: str) -> None:
    script = next(s for s, source, _ in RUNS.values() if source == name)
    apart = run_apart if name == "AWA2" else run_here  # one in a process of its own is enough
    said = f"(which is no folder) holds no {name}", f"data/xlsa17/data/{name}/att_splits.mat", f"See data/{name}.md"
    refused(apart(tmp_path, script), *said)
    refused(apart(tmp_path, extraction(name)), f"data/xlsa17/data/{name}", f"See data/{name}.md")
    assert not list(tmp_path.iterdir())
    draw(tmp_path / "data", name, SMALL.images)
    said = f"looked for {Path('data') / name}/feature_map_*_{name}.hdf5", f"python {extraction(name)}"
    refused(run_here(tmp_path, script), *said)


def test_missing_images_are_named(tmp_path: Path) -> None:
    draw(tmp_path / "data", "AWA2", SMALL.images)
    folder = tmp_path / "data" / "AWA2" / "Animals_with_Attributes2"
    shutil.rmtree(folder)  # the attribute names lie in it
    refused(run_here(tmp_path, extraction("AWA2")), str(folder.relative_to(tmp_path)), "See data/AWA2.md")
    folder.mkdir()
    first = class_names("AWA2")[0][0]
    refused(run_here(tmp_path, extraction("AWA2")), "none of the 130 images", f"JPEGImages/{first}/{first}_1")
    assert not list((tmp_path / "data" / "AWA2").glob("feature_map*"))


@pytest.fixture(scope="module")
def small_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """130 images of AWA2's 50 classes and the weights of a small network."""
    place = tmp_path_factory.mktemp("small")
    paint(draw(place / "data", "AWA2", SMALL.images))
    weights_file(place, SMALL.backbone)
    return place


@pytest.fixture
def small(small_data: Path, tmp_path: Path) -> tuple[Path, list[str]]:
    """A copy of the small data, and the flags of a fast extraction."""
    place = tmp_path / "place"
    shutil.copytree(small_data, place)
    flags = ["--backbone", SMALL.backbone, "--weights", f"{SMALL.backbone}.safetensors"]
    return place, [*flags, "--input-size", str(SMALL.input_size), "--device", "cpu"]


def test_a_corrupt_image_is_listed_and_no_final_file_is_left(small: tuple[Path, list[str]]) -> None:
    place, flags = small
    bad = sorted((place / "data" / "AWA2").rglob("*.jpg"))[50]
    content = bad.read_bytes()
    bad.write_bytes(content[: len(content) // 2])
    result = run_apart(place, extraction("AWA2"), *flags)
    shown = str(bad.relative_to(place))
    refused(result, "1 of 130 images could not be read", shown, "Replace them and run the same command again")
    final = place / "data" / "AWA2" / f"feature_map_{SMALL.backbone}_{SMALL.input_size}px_AWA2.hdf5"
    assert not final.exists()
    report = final.with_name(final.name + ".rows-0-130.bad_images.txt")
    assert [line.split(": ")[0] for line in report.read_text().splitlines()] == [shown]
    refused(run_here(place, "AWA2_ours.py"), "no feature file", f"python {extraction('AWA2')}")
    bad.write_bytes(content)
    code, _, err = run_here(place, extraction("AWA2"), *flags)
    assert code == 0, err
    assert [p.name for p in final.parent.iterdir() if p.is_file()] == [final.name]


def test_a_half_written_feature_file_is_refused(small: tuple[Path, list[str]]) -> None:
    place, flags = small
    assert run_here(place, extraction("AWA2"), *flags, "--limit", "64")[0] == 0
    final = place / "data" / "AWA2" / f"feature_map_{SMALL.backbone}_{SMALL.input_size}px_AWA2.hdf5"
    partial = final.with_name(final.name + ".rows-0-130.npy")
    assert partial.exists() and not final.exists()
    command = f"python {extraction('AWA2')}"
    refused(run_apart(place, "AWA2_ours.py"), "no feature file", command)
    shown = final.relative_to(place)
    refused(run_here(place, "AWA2_ours.py", "--features", shown), str(shown), f"{command} --out {shown}")

    shutil.copy(partial, final)  # as if someone had renamed it
    refused(run_here(place, "AWA2_ours.py"), str(shown), "not a readable HDF5 file")
    refused(run_here(place, extraction("AWA2"), *flags), str(shown))  # nor does the extraction take it for done
    final.unlink()
    mend = f"mv {shown} {shown}.partial"

    code, _, err = run_here(place, extraction("AWA2"), *flags)
    assert code == 0, err
    damaged = bytearray(final.read_bytes())
    with FeatureFile(final) as file:
        start = file.row_offset(17)
    damaged[start + 999] ^= 4
    final.write_bytes(damaged)
    vectors = place / "vectors.pkl"
    np.random.default_rng(0).standard_normal((85, 300)).astype(np.float32).dump(vectors)
    said = str(shown), "row 17", "JPEGImages/", "damaged", mend
    refused(run_here(place, "AWA2_ours.py", "--w2v", vectors), *said)
    assert not (place / "results").exists()
