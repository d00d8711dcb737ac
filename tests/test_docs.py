"""The pages hang together: they build strictly, say what the data sets are, and what adding.md and the tour do runs."""

import importlib
import json
import re
import subprocess
import sys
import tomllib
from functools import partial
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient

import core
import core.method as contract
from core.commands import demo as setup
from core.commands import extract, train
from core.datasets import registry
from core.datasets.download import SOURCES
from core.datasets.registry import DATASETS
from core.demo.dataset import render_demo
from core.experiments.identity import method_digest
from core.features import trunks
from core.methods import methods
from tests.helpers import ROOT, run_here
from tests.helpers_features import make_toy


def test_the_pages_build_strictly(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    pages = {p.stem for p in (ROOT / "docs").glob("*.md")} - {"README"}
    assert pages <= {p.parent.name for p in (tmp_path / "site").rglob("index.html")}


def test_the_data_sets_pages_have_their_counts_archives_layout_and_commands() -> None:
    for name in ("AWA2", "CUB", "SUN"):
        text, counts = (ROOT / "data" / f"{name}.md").read_text("utf-8"), DATASETS[name].counts
        assert counts is not None
        first = " ".join(text.split("\n\n")[1].split())
        assert str(counts.images) in first and f"{counts.attributes} attributes" in first
        assert re.search(rf"\b{counts.seen + counts.unseen} ", first)
        assert all(f"`{archive.url.rsplit('/', 1)[1]}`" in first for archive in SOURCES[name])
        assert all((archive.md5 or "No checksum is published") in first for archive in SOURCES[name])
        assert "into `data/archives/` first" in text
        assert f"data/xlsa17/data/{name}/{{res101,att_splits}}.mat" in text
        scripts = re.findall(r"`python (extract_feature/\S+\.py)`", text)
        assert len(scripts) == 2 and all(name in script and (ROOT / script).is_file() for script in scripts)
        assert re.findall(r"^- (\w+):", text, re.MULTILINE) == ["Page", "Terms", "Citation"]
        assert f"python data/get_data.py {name}\npython data/get_data.py xlsa17\n" in text


def test_one_version_everywhere() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    assert core.__version__ == version
    assert re.search(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text("utf-8"), re.MULTILINE)[1] == version
    assert re.search(r"^## (\d\S+)", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)[1] == version


def bounds(lines: list[str]) -> dict[str, str]:
    """Package and lowest version of each requirement."""
    plain = [re.sub(r"\s|#.*|;.*|\[.*\]", "", line) for line in lines]
    return dict(re.split(">=|==", line) for line in plain if line and not line.startswith("-"))


def test_lowest_versions_are_the_same_wherever_they_stand() -> None:
    """requirements.txt and the extras; requirements-dev.txt repeats the extras; constraints-lowest.txt pins all."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    needed = bounds((ROOT / "requirements.txt").read_text("utf-8").splitlines())
    optional = project["project"]["optional-dependencies"]  # [export] needs a newer torch, so it is tested apart
    extras = bounds([line for name, lines in optional.items() if name != "export" for line in lines])
    development = bounds((ROOT / "requirements-dev.txt").read_text("utf-8").splitlines())
    pinned = bounds((ROOT / "constraints-lowest.txt").read_text("utf-8").splitlines())
    assert {name: extras[name] for name in extras if name in development}.items() <= development.items()
    assert pinned == needed | {name: extras[name] for name in extras if name in development}
    assert project["tool"]["setuptools"]["dynamic"]["dependencies"] == {"file": ["requirements.txt"]}
    made_with = bounds((ROOT / "constraints.txt").read_text("utf-8").splitlines())
    assert needed.keys() | (extras.keys() & development.keys()) <= made_with.keys()


PAGE = (ROOT / "docs" / "adding.md").read_text()
BLOCKS = {block.split("\n")[0].removeprefix("# "): block for block in re.findall(r"```python\n(.*?)```", PAGE, re.S)}


@pytest.fixture
def added(tmp_path, monkeypatch):
    """The three of the page, registered for one test."""
    monkeypatch.setattr(contract, "REGISTRY", {m.name: m for m in methods().values()})
    for known in (registry.DATASETS, trunks.BUILDERS):
        for name in ("FLO", "tiny"):
            monkeypatch.setitem(known, name, None)
            del known[name]
    exec(BLOCKS["core/datasets/registry.py"], {"register": registry.register, "DataSet": registry.DataSet})
    monkeypatch.syspath_prepend(tmp_path)
    for file in ("core/Linear.py", "core/features/added/tiny.py"):
        (tmp_path / Path(file).name).write_text(BLOCKS[file])
        monkeypatch.delitem(sys.modules, Path(file).stem, raising=False)
        importlib.import_module(Path(file).stem)
    yield tmp_path
    method_digest.cache_clear()


def test_a_driver_runs_with_the_method_data_set_and_backbone_of_the_page(added, monkeypatch, capsys):
    monkeypatch.chdir(added)
    make_toy(added / "data", DATASETS["FLO"])
    np.save("v.npy", np.random.default_rng(1).normal(size=(8, 4)).astype(np.float32))
    assert extract.main("FLO", None, ["--backbone", "tiny", "--weights", "random", "--device", "cpu"]) == 0
    flags = ["--method", "linear", "--w2v", "v.npy", "--device", "cpu"]
    assert train.main("FLO", "FLO", [*flags, "--ridge", "0.5"]) == 0
    assert "| linear (ridge=0.5) |" in capsys.readouterr().out
    (path,) = (added / "results").rglob("metrics.json")
    result = json.loads(path.read_text())
    assert result["standard"]["S"] > 0.5  # six seen classes, told by their colour
    assert result["config"]["recipe"] == {"ridge": 0.5} and result["config"]["features"]["regions"] == "4x4"
    with pytest.raises(contract.UserError, match="--ridge -1.0: penalty of the ridge regression must be above 0"):
        train.main("FLO", "FLO", [*flags, "--ridge", "-1"])


def test_a_change_of_the_added_method_changes_its_digest(added):
    before = method_digest("linear")
    path = added / "Linear.py"
    path.write_text(path.read_text() + "\n# changed\n")
    method_digest.cache_clear()
    assert method_digest("linear") != before


TOUR = ROOT / "docs" / "tour.ipynb"


def test_the_notebook_runs_to_its_end_on_a_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup, "render_demo", partial(render_demo, images_per_class=5, seen=8, unseen=2))
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
