"""The benchmarks run, at sizes at which their figures mean nothing."""

import importlib
import os
import sys

import pytest

SLOW = pytest.mark.skipif("SLOW" not in os.environ, reason="the slow benchmarks: make nightly sets SLOW=1")


@pytest.mark.parametrize(
    ("name", "flags", "told"),
    [
        ("predict", (), "against the bare forward pass, by processor time"),
        ("growth", ("--only", "images"), "growth of evaluation, streamed with images"),
        pytest.param("steps", ("--shapes", "AWA2", "--repeats", "2"), "step of vsmr against", marks=SLOW),
        pytest.param("extraction", (), "peak memory at 24 and 64 images", marks=SLOW),
        pytest.param("gpu", ("--device", "cpu"), "AWA2-sized run", marks=SLOW),
    ],
)
def test_a_benchmark_runs(name, flags, told, tmp_path, monkeypatch, capsys):
    flags += ("--out", str(tmp_path / "growth.png")) if name == "growth" else ()
    monkeypatch.setattr(sys, "argv", [name, "--trial", *flags])
    assert importlib.import_module(f"benchmarks.{name}").main() == 0
    assert told in capsys.readouterr().out
