"""A drawn data set with a run of every method, for the tests of what a trained run is put to."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import core
from core.datasets.paths import image_folder, resolve_images
from core.datasets.registry import DATASETS
from core.experiments.inputs import Inputs, load_inputs
from core.inference.predictor import Predictor
from core.inference.trained import CHECKPOINT
from core.training.checkpoint import load_checkpoint, save_checkpoint
from tests.helpers import run_here

SHORT = {  # flags with which a method takes seconds
    "dazle": ("--epochs", "1"),
    "msdn": ("--epochs", "1"),
    "transzero": ("--epochs", "1"),
    "vsmr": (),
    "vsmr-staged": (
        *("--classes-per-batch", "8", "--images-per-class", "4", "--visual-iterations", "10"),
        *("--hidden", "64", "--predictor-epochs", "2", "--semantic-epochs", "2"),
    ),
    "eszsl": (),
}


class Made:
    """A drawn data set with a run of every method, trained when it is first asked for."""

    def __init__(self, place: Path, weights: Path) -> None:
        self.place, self.weights = place, weights
        self.inputs: Inputs = load_inputs("AWA2", data_root=place / "data", w2v=place / "w2v" / "AWA2_attribute.pkl")

    def run(self, method: str) -> Path:
        if not (found := list((self.place / "results" / "AWA2").glob(f"*/{method}/seed0/metrics.json"))):
            code, _, err = run_here(self.place, "AWA2_ours.py", "--method", method, *SHORT[method])
            assert code == 0, err
            found = list((self.place / "results" / "AWA2").glob(f"*/{method}/seed0/metrics.json"))
        return found[0].parent

    @property
    def record(self) -> dict[str, Any]:
        """What a checkpoint says of the backbone."""
        return load_checkpoint(self.run("eszsl") / CHECKPOINT)[1]["backbone"]

    def changed(self, place: Path, **meta: object) -> Path:
        """A run in ``place`` whose checkpoint says something else than that of eszsl."""
        tensors, own = load_checkpoint(self.run("eszsl") / CHECKPOINT)
        save_checkpoint(place / CHECKPOINT, tensors, own | meta)
        return place

    def load(self, method: str, **options) -> Predictor:
        return core.load(self.run(method), weights=self.weights, device="cpu", **options)

    def tested(self) -> tuple[np.ndarray, list[Path]]:
        """Rows and image files of all test images."""
        m = self.inputs.metadata
        rows = np.concatenate([m.test_seen_loc, m.test_unseen_loc])
        folder = image_folder(self.place / "data", DATASETS["AWA2"])
        return rows, resolve_images(folder, [m.image_files[r] for r in rows])[0]


def scores_by_name(model: Predictor, paths: list[Path]) -> np.ndarray:
    """(N,C) scores with γ, in the order of the classes, from answers that hold all of them."""
    classes = model.trained.classes
    rows = []
    for answer in model.predict_all(paths, top=len(classes)):
        by_name = {c.name: c.score for c in answer.classes}
        rows.append([by_name[name] for name in classes])
    return np.array(rows)


def described(model: Predictor, names: dict[str, str]) -> pd.DataFrame:
    """Known classes described anew under other names, columns in another order."""
    t = model.trained
    att = t.space.att.numpy()[[t.classes.index(old) for old in names]]
    frame = pd.DataFrame(att, columns=t.attributes)[list(reversed(t.attributes))]
    frame.insert(0, "class", list(names.values()))
    return frame
