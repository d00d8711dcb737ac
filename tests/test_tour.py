"""docs/tour.ipynb to its end, on a small demo: fewer pictures, an epoch of everything."""

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
    book = nbformat.read(TOUR, 4)
    code_cells = [cell for cell in book.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code_cells)  # of some run of long ago
    code, _, err = run_here(tmp_path, "DEMO_ours.py")
    assert code == 0, err
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    NotebookClient(book, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    said = "".join(o.get("text", "") for cell in book.cells for o in cell.get("outputs", []))
    assert "8 seen and 2 unseen classes" in said
    before, after = said.splitlines()[-1].split(" before; my creature: ")
    assert before.split(": ")[-1] == after.removesuffix(" now")  # the description alone decides the score
    shown = [kind for cell in book.cells for o in cell.get("outputs", []) for kind in o.get("data", ())]
    assert {"image/png", "text/markdown", "text/html"} <= set(shown)
