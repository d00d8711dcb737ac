"""docs/adding.md is true: its method, data set and backbone are written to files, registered, and a driver is run."""

import importlib.util
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

import core.method as contract
from core.commands import extract, train
from core.datasets import registry
from core.experiments.identity import method_digest
from core.features import trunks
from core.methods import methods
from tests.helpers import ROOT
from tests.helpers_features import make_toy

PAGE = (ROOT / "docs" / "adding.md").read_text()
BLOCKS = {block.split("\n")[0].removeprefix("# "): block for block in re.findall(r"```python\n(.*?)```", PAGE, re.S)}


def load(path: Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def added(tmp_path, monkeypatch):
    """The three of the page, registered for one test."""
    monkeypatch.setattr(contract, "REGISTRY", {m.name: m for m in methods().values()})
    for known in (registry.DATASETS, trunks.BUILDERS):
        for name in ("FLO", "tiny"):
            monkeypatch.setitem(known, name, None)
            del known[name]
    (tmp_path / "Linear.py").write_text(BLOCKS["core/Linear.py"])
    monkeypatch.setitem(sys.modules, "Linear", None)
    load(tmp_path / "Linear.py")
    exec(BLOCKS["core/datasets/registry.py"], {"register": registry.register, "DataSet": registry.DataSet})
    (tmp_path / "tiny.py").write_text(BLOCKS["core/features/added/tiny.py"])
    monkeypatch.setitem(sys.modules, "tiny", None)
    load(tmp_path / "tiny.py")
    yield tmp_path
    method_digest.cache_clear()


def test_a_driver_runs_with_the_method_data_set_and_backbone_of_the_page(added, monkeypatch, capsys):
    monkeypatch.chdir(added)
    make_toy(added / "data", "FLO")
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
