"""The benchmarks run, all of them, at sizes at which their figures mean nothing."""

import csv
import subprocess
import sys
from pathlib import Path

from benchmarks.run import JOBS

ROOT = Path(__file__).resolve().parents[1]


def test_every_benchmark_runs_and_the_table_holds_what_it_found(tmp_path):
    real = ROOT / "results" / "benchmarks.md"
    before = real.read_bytes()
    command = [sys.executable, "-m", "benchmarks.run", "--trial", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
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
    assert len(done.stderr.split("benchmarks.")) > len(JOBS)
    assert real.read_bytes() == before  # a trial leaves the real table alone
