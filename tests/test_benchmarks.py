"""The benchmarks run, all of them, at sizes at which their figures mean nothing."""

import csv
import json
import os
import sys
import time
from pathlib import Path

import pytest

from benchmarks import backbones, run
from benchmarks.whole_photographs import costing, feature_file, table, write_table
from core.experiments.results import write_json
from core.experiments.statistics import paired
from core.files.atomic import write_bytes
from core.files.errors import UserError
from core.method import epochs_of, find_method
from tests.helpers import ROOT

SLOW = ("training_step", "shards", "extraction", "gpu")  # most of the time, much of it in fresh processes
if_asked = pytest.mark.skipif("SLOW" not in os.environ, reason="the slow benchmarks: make nightly sets SLOW=1")


@pytest.mark.parametrize("slow_ones", [False, pytest.param(True, marks=if_asked)])
def test_every_benchmark_runs_and_the_table_holds_what_it_found(tmp_path, monkeypatch, slow_ones):
    jobs = [job for job in run.JOBS if (job[0] in SLOW) == slow_ones]
    assert {job[0] for job in jobs} == set(SLOW) if slow_ones else len(jobs) == 4
    monkeypatch.setattr(run, "JOBS", jobs)
    monkeypatch.setattr(sys, "argv", ["run", "--trial", "--out", str(tmp_path)])
    real = ROOT / "results" / "benchmarks.md"
    before = real.read_bytes()
    assert run.main() == 0
    with open(tmp_path / "benchmarks.csv", newline="", encoding="utf-8") as handle:
        rows = list(csv.DictReader(handle))
    text = (tmp_path / "benchmarks.md").read_text("utf-8")
    assert all(row["what"] in text and row["ours" if row["ours"] else "ratio"] in text for row in rows)
    told = ["training step, AWA2", "processes of one core each", "extraction", "AWA2-sized run", "2 seeds of"]
    if not slow_ones:
        told = ["step of vsmr", "read, cold", "predict", "growth"]
        assert (tmp_path / "benchmarks_growth.png").stat().st_size > 1000
    assert all(any(words in row["what"] for row in rows) for words in told), rows
    assert real.read_bytes() == before  # a trial leaves the real table alone


def finished(work: Path, variant: str, method: str, seed: int, ausuc: float, **other: object) -> None:
    """What a run of benchmarks.whole_photographs leaves."""
    epochs = epochs_of(find_method(method).recipe("CUB"))
    config = {"method": method, "seed": seed, "epochs": epochs, "features": {"regions": "7x7"}, "code": "a"}
    config |= {"split_sha256": "b", "vectors_sha256": "c"} | other
    folder = work / "runs" / variant.replace(" ", "_") / f"{method}-{config['epochs']}" / f"seed{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "validation.json", {"config": config, "chosen": {"validation": {"AUSUC": ausuc, "H": 0.5}}})
    with costing(folder / "cost.json"):
        pass
    write_bytes(feature_file(work, variant).with_suffix(".cost.json"), b'{"cpu_seconds": 60.0, "bytes": 2000000}')


def test_the_table_of_whole_photographs_is_of_the_finished_runs_and_paired_by_split(tmp_path):
    for seed, (base, other) in enumerate([(0.5, 0.52), (0.6, 0.64), (0.4, 0.46)]):
        finished(tmp_path, "224", "vsmr", seed, base)
        finished(tmp_path, "448 pool 2", "vsmr", seed, other)
    finished(tmp_path, "224", "vsmr", 3, 0.9)  # no other variant has split 3: no part of a difference
    finished(tmp_path, "224", "dazle", 0, 0.3, epochs=2)
    finished(tmp_path, "224 flip", "dazle", 0, 0.35, epochs=2)
    text = table(write_table(tmp_path))
    assert (tmp_path / "whole_photographs.md").read_text("utf-8") == text + "\n"
    d = paired([52, 64, 46], [50, 60, 40])
    assert f"| vsmr | 448 pool 2 | 3 | 7x7 | 2 | 60 | 0 | 54.0 | +4.0 [{d.low:+.1f}, {d.high:+.1f}] |" in text
    assert "| dazle, cut off at 2 of 20 epochs | 224 flip | 1 | 7x7 | 2 | 60 | 0 | 35.0 | +5.0 |" in text
    finished(tmp_path, "224", "vsmr", 1, 0.6, code="other")
    with pytest.raises(UserError, match="differ in code"):
        write_table(tmp_path)


def interrupted(path: Path) -> None:
    with costing(path):
        started = time.process_time()
        while time.process_time() - started < 0.05:
            pass
        raise KeyboardInterrupt


def test_what_an_interrupted_block_cost_is_not_forgotten(tmp_path):
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            interrupted(tmp_path / "cost.json")
    assert json.loads((tmp_path / "cost.json").read_text())["cpu_seconds"] >= 0.1


def test_backbones_are_measured(tmp_path, capsys):
    flags = ["--backbones", "squeezenet1_1", "timm:nonsense", "--sizes", "64", "--batch-size", "4", "--batches", "1"]
    assert backbones.main([*flags, "--turns", "1", "--csv", str(tmp_path / "speed.csv")]) == 0
    said = capsys.readouterr().out
    assert "| `squeezenet1_1` | 64 | 3x3 |" in said and "timm:nonsense at 64: " in said
    with open(tmp_path / "speed.csv", newline="", encoding="utf-8") as handle:
        (row,) = csv.DictReader(handle)
    assert float(row["kilobytes"]) == 512 * 9 * 2 / 1e3 and float(row["share"]) > 0
