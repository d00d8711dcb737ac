"""What each method is on each data set: the numbers, as data, with where they come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from core.DAZLE import DAZLE
from core.features import RegionFeatures
from core.training import Batches, Fold, Method, Phase, seeded
from core.VSMR import StagedRecipe, VSMRStaged

METHODS = ("vsmr-staged", "dazle")
STEP = 10  # iterations in one "epoch" of the staged visual phase, the grain of its selection


@dataclass(frozen=True)
class DazleRecipe:
    """DAZLE's settings (its released training scripts)."""

    lr: float = 1e-4
    weight_decay: float = 1e-4
    momentum: float = 0.9
    epochs: int = 20
    batch_size: int = 50
    lambda_cal: float = 0.1
    balanced: bool = False
    normalize_vectors: bool = False
    use_w: bool = True


DAZLE_RECIPES = {
    "AWA2": DazleRecipe(momentum=0.0, balanced=True, normalize_vectors=True),
    "CUB": DazleRecipe(),
    "CUB50": DazleRecipe(),
    "SUN": DazleRecipe(epochs=100, balanced=True, use_w=False),
    "DEMO": DazleRecipe(lr=5e-4, balanced=True),
}

_CUB50_STAGED = StagedRecipe(
    predictor_lr=1e-5,
    predictor_epochs=20,
    threshold=0.45,
    visual_momentum=0.9,
    visual_iterations=40,
    train_vectors=False,
    hidden=1024,
    semantic_lr=8e-4,
    semantic_epochs=200,
    neighbours=10,
)
_AWA2_STAGED = StagedRecipe(
    predictor_lr=1e-3,
    predictor_epochs=10,
    threshold=0.5,
    visual_momentum=0.0,
    visual_iterations=470,
    train_vectors=True,
    hidden=1850,
    semantic_lr=1e-3,
    semantic_epochs=180,
    neighbours=30,
)


def _replaced(recipe: Any, **values: Any) -> Any:
    return type(recipe)(**{**recipe.__dict__, **values})


# Published for AWA2 and CUB50. None was for CUB and SUN: the mask's threshold (None) is chosen on validation there,
# and the predictor's learning rate is the one published for AWA2.
STAGED_RECIPES = {
    "AWA2": _AWA2_STAGED,
    "CUB50": _CUB50_STAGED,
    "CUB": _replaced(_CUB50_STAGED, threshold=None, predictor_lr=1e-3),
    "SUN": _replaced(_CUB50_STAGED, threshold=None, predictor_lr=1e-3),
    "DEMO": _replaced(_CUB50_STAGED, threshold=None, predictor_lr=1e-3, images_per_class=20, semantic_epochs=100),
}


def recipe_of(method: str, dataset: str) -> Any:
    """The settings of a method on a data set."""
    return (DAZLE_RECIPES if method == "dazle" else STAGED_RECIPES)[dataset]


def build(
    method: str, recipe: Any, fold: Fold, D: int, seed: int, epochs: int | None = None, device: str = "cpu"
) -> Method:
    """A method ready to train on a fold; ``epochs`` replaces the length of its selectable phase."""
    space = fold.space.to(device)
    if method == "dazle":
        return _dazle(recipe, space, D, seed, epochs, device)
    return _staged(recipe, space, D, seed, epochs, device)


def _dazle(r: DazleRecipe, space: Any, D: int, seed: int, epochs: int | None, device: str) -> Method:
    with seeded(seed):
        model = DAZLE(space, D, lambda_cal=r.lambda_cal, use_w=r.use_w, normalize_vectors=r.normalize_vectors).to(
            device
        )
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.RMSprop(parameters, lr=r.lr, weight_decay=r.weight_decay, momentum=r.momentum)
    batches = Batches(r.batch_size, balanced=r.balanced)
    return Method(model, [Phase("attention", model.loss, optimizer, batches, epochs or r.epochs)])


def _staged(r: StagedRecipe, space: Any, D: int, seed: int, epochs: int | None, device: str) -> Method:
    with seeded(seed):
        model = VSMRStaged(space, D, r, seed).to(device)

    def rmsprop(parameters: Any, lr: float, momentum: float) -> torch.optim.Optimizer:
        kept = [p for p in parameters if p.requires_grad]
        return torch.optim.RMSprop(kept, lr=lr, weight_decay=1e-4, momentum=momentum)

    predictor = Phase(
        "predictor",
        model.predictor_loss,
        rmsprop(model.predictor.parameters(), r.predictor_lr, 0.9),
        Batches(64),
        r.predictor_epochs,
        selectable=False,
        pooled=True,
    )
    visual = Phase(
        "visual",
        model.visual_loss,
        rmsprop(model.attention.parameters(), 1e-4, r.visual_momentum),
        Batches(0, steps=STEP, classes=r.classes_per_batch, per_class=r.images_per_class),
        epochs or max(1, r.visual_iterations // STEP),
    )

    def finish(features: RegionFeatures, fold: Fold) -> None:
        total = torch.zeros_like(model.prototypes)
        model.eval()
        for start in range(0, len(fold.train_rows), 256):
            rows = fold.train_rows[start : start + 256]
            labels = torch.from_numpy(fold.train_labels[start : start + 256]).to(total.device)
            model.accumulate(features.batch(rows), labels, total)
        counts = torch.from_numpy(np.bincount(fold.train_labels, minlength=len(total))).to(total)
        model.finish(total, counts)

    return Method(model, [predictor, visual], finish)
