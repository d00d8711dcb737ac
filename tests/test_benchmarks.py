"""The benchmarks run, all of them, at sizes at which their figures mean nothing."""

import csv

from benchmarks.run import JOBS
from tests.helpers import ROOT, run_here


def test_every_benchmark_runs_and_the_table_holds_what_it_found(tmp_path):
    real = ROOT / "results" / "benchmarks.md"
    before = real.read_bytes()
    code, _, err = run_here(ROOT, "benchmarks/run.py", "--trial", "--out", tmp_path)
    assert code == 0, err[-2000:]
    with open(tmp_path / "benchmarks.csv", newline="", encoding="utf-8") as handle:
        rows = list(csv.DictReader(handle))
    text = (tmp_path / "benchmarks.md").read_text("utf-8")
    assert all(row["what"] in text and row["ours" if row["ours"] else "ratio"] in text for row in rows)
    assert (tmp_path / "benchmarks_growth.png").stat().st_size > 1000
    for told in (
        "training step, AWA2",
        "step of vsmr",
        "read, cold",
        "extraction",
        "growth",
        "AWA2-sized run",
        "2 seeds of",
        "processes of one core each",
    ):
        assert any(told in row["what"] for row in rows), told
    assert len(err.split("benchmarks.")) > len(JOBS)
    assert real.read_bytes() == before  # a trial leaves the real table alone
