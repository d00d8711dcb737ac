"""The four drivers to the end, through the real scripts, on small images under xlsa17's real names; and what a user
sees where something is missing or damaged."""

import json
import re

import h5py
import numpy as np
import pandas as pd
import pytest

from core.datasets.registry import DATASETS
from tests.helpers import run_here
from tests.helpers_predict import SHORT
from tests.helpers_xlsa17 import PARTS, SPLITS, Maker, below

RUNS = {
    "AWA2": ("AWA2_ours.py", "AWA2", ()),
    "CUB": ("CUB50_ours.py", "CUB", ()),
    "CUB50": ("CUB50_ours.py", "CUB", ("--split", "cub50")),
    "SUN": ("SUN_ours.py", "SUN", ()),
}
# every driver, and dazle, vsmr and vsmr-staged, each of these once with a page: each pair takes seconds
PAIRS = [("AWA2", "vsmr"), ("AWA2", "vsmr-staged"), ("CUB", "vsmr"), ("CUB50", "vsmr-staged"), ("SUN", "dazle")]
PAGED = PAIRS[2:]


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


@pytest.mark.parametrize(("run", "method"), PAIRS)
def test_a_driver_runs_to_the_end(made: Maker, run: str, method: str) -> None:
    script, source, flags = RUNS[run]
    place, _ = made(source)
    part, counts, paged = PARTS[source], DATASETS[run].counts, (run, method) in PAGED
    assert counts is not None
    more = (*SHORT[method], *(["--page"] if paged else []))
    code, out, err = run_here(place, script, *flags, "--method", method, "--seeds", "1", *more)
    assert code == 0, err

    (folder,) = (place / "results" / run).glob(f"*/{method}")  # the folder between names the features
    result = json.loads((folder / "seed0" / "metrics.json").read_text())
    assert result["chosen"]["epochs"] in (0, 1) and result["config"]["features"]["backbone"] == part.backbone
    per_class = pd.read_csv(folder / "seed0" / "per_class.csv")
    assert per_class["side"].value_counts().to_dict() == {"seen": counts.seen, "unseen": counts.unseen}

    note = f"a subset of {run}, numbers do not compare with the literature"
    assert sum(note in line for line in (out + err).splitlines()) == 1  # said, and not twice
    table = (folder / "table.md").read_text()
    assert table in out
    page = folder / "page"
    assert (f"page: {page.relative_to(place)}" in out) == (page / "index.html").is_file() == paged
    assert f"γ of each seed: {result['standard']['gamma']:.3g}; chosen: class-disjoint validation" in table
    row = next(line for line in table.splitlines() if re.match(rf"\| (\*\*)?{method}[ *]", line))
    assert row.split(" | ")[1] == f"{100 * result['standard']['T1']:.1f}"
    assert "SELECTED ON TEST" in table and "(as published)" not in table
    assert ("PUBLISHED PROCEDURE" in table) == (method == "vsmr-staged")


def test_a_seed_joins_the_table_of_those_that_are_there(made: Maker) -> None:
    place, _ = made("AWA2")
    for which in (("--seeds", "2"), ("--seed", "2")):
        command = ("--method", "eszsl", *which, "--device", "cpu", "--out", "joined")
        assert run_here(place, "AWA2_ours.py", *command)[0] == 0
    (table,) = (place / "joined").rglob("table.md")
    assert len(re.findall(r"γ of each seed: (.*); chosen", table.read_text())[0].split(", ")) == 3
