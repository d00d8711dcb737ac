"""docs/tour.ipynb to its end, on a small demo: fewer pictures, an epoch of everything."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from core.commands import demo as setup
from core.demo.backbone import train_demo_backbone
from core.demo.dataset import render_demo
from tests.helpers import ROOT, run_here

TOUR = ROOT / "docs" / "tour.ipynb"


def test_the_notebook_runs_to_its_end_on_a_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup, "render_demo", partial(render_demo, images_per_class=5, seen=8, unseen=2))
    monkeypatch.setattr(setup, "train_demo_backbone", partial(train_demo_backbone, epochs=1))
    code, _, err = run_here(tmp_path, "DEMO_ours.py")
    assert code == 0, err
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    book = nbformat.read(TOUR, 4)
    NotebookClient(book, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    said = "".join(o.get("text", "") for cell in book.cells for o in cell.get("outputs", []))
    assert "8 seen and 2 unseen classes" in said
    before, after = said.splitlines()[-1].split(" before; my creature: ")
    assert before.split(": ")[-1] == after.removesuffix(" now")  # the description alone decides the score
    shown = [kind for cell in book.cells for o in cell.get("outputs", []) for kind in o.get("data", ())]
    assert {"image/png", "text/markdown", "text/html"} <= set(shown)


def test_the_notebook_is_small_and_holds_no_outputs() -> None:
    """They would be of some run of long ago."""
    cells = json.loads(TOUR.read_text("utf-8"))["cells"]
    assert TOUR.stat().st_size < 20_000
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells if cell["cell_type"] == "code")
