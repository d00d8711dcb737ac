"""The benchmarks run, at sizes at which their figures mean nothing."""

import importlib
import os
import sys

import pytest

SLOW = pytest.mark.skipif("SLOW" not in os.environ, reason="the slow benchmarks: make nightly sets SLOW=1")
SMALL = ("--backbone", "mobilenet_v2", "--input-size", "64", "--images")


@pytest.mark.parametrize(
    ("name", "flags", "told"),
    [
        ("predict", (*SMALL, "64"), "against the bare forward pass, by processor time"),
        ("growth", ("--only", "images", "--repeats", "1"), "growth of evaluation, streamed with images"),
        ("gpu", ("--repeats", "2"), ""),
        pytest.param("steps", ("--shapes", "AWA2", "--repeats", "2"), "step of msdn against", marks=SLOW),
        pytest.param("extraction", (*SMALL, "24", "64", "--forwards", "1"), "peak memory at 24 and 64", marks=SLOW),
    ],
)
def test_a_benchmark_runs(name, flags, told, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [name, *flags])
    assert importlib.import_module(f"benchmarks.{name}").main() == 0
    assert told in capsys.readouterr().out
