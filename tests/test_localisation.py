"""Attention against known part locations: by hand, and on the whole demo (drawn, extracted, trained here)."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from core.commands.train import main
from core.datasets.paths import image_folder
from core.datasets.registry import DEMO
from core.demo.dataset import TRAITS
from core.demo.drawing import PARTS, SIZE
from core.experiments.inputs import load_inputs
from core.inference.trained import load_trained
from studies.part_measures import attention_on_parts
from tests.helpers import part_locations


def test_mass_by_hand():
    theta = np.zeros((1, 9, 3))
    theta[0, 0, 0] = 1.0  # attribute 0: all on the upper left cell
    theta[0, 8, 1] = 1.0  # attribute 1: all on the lower right
    theta[0, :, 2] = 1 / 9
    locations = np.array([[[0.1, 0.1, 1.0], [0.1, 0.1, 1.0]]])  # both parts upper left: 4 of 9 cells near
    table = attention_on_parts(theta, locations, np.array([0, 1, 1]), np.ones((1, 3)))
    assert table.own.tolist() == pytest.approx([1.0, (0 + 4 / 9) / 2])
    assert table.chance.tolist() == pytest.approx([4 / 9, 4 / 9])
    assert table.others.tolist() == pytest.approx([(0 + 4 / 9) / 2, 1.0])
    assert table.pairs.tolist() == [1, 2]


@pytest.fixture(scope="module")
def demo_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("demo")


@pytest.mark.skipif(not os.environ.get("SLOW"), reason="the whole demo, three minutes: make nightly sets SLOW=1")
@pytest.mark.parametrize(("method", "least"), [("dazle", 1.3), ("vsmr", 1.15)])
def test_attention_falls_on_its_part_and_unseen_classes_are_told(demo_folder, monkeypatch, method, least):
    """``least``: attention on the own part over uniform attention there, mean of all parts."""
    monkeypatch.chdir(demo_folder)
    assert main("DEMO", None, ["--method", method, "--select", "last", "--no-diagnostics"]) == 0
    (run,) = Path("results").glob(f"DEMO/*/{method}/seed0")
    result = json.loads((run / "metrics.json").read_text())
    inputs = load_inputs("DEMO")
    m = inputs.metadata
    assert result["standard"]["T1"] > 3 / len(m.unseen)  # chance is 1 / U

    rows = m.test_unseen_loc
    with torch.no_grad():
        theta = load_trained(run).model.attend(inputs.features.batch(rows)).theta.numpy()
    folder = image_folder(Path("data"), DEMO)
    order = [line.split()[1] for line in (folder / "images.txt").read_text().splitlines()]
    position = [order.index(m.image_files[r].split("images/")[1]) for r in rows]
    locations = part_locations(folder, len(PARTS))[position] / np.array([SIZE, SIZE, 1.0])
    attribute_part = np.array([PARTS.index(part) for part, values in TRAITS.values() for _ in values])
    present = m.original_att[m.labels[rows]] > 50
    table = attention_on_parts(theta, locations, attribute_part, present)
    assert (table.pairs > 20).all()
    assert (table.own / table.chance).mean() > least
    assert (table.own > table.chance).all(), table
    assert table.own.mean() > table.others.mean(), table  # on its own part rather than on the creature at large
