"""What each method is on each data set: the numbers, as data, with where they come from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import cos, pi
from typing import Any

import numpy as np
import torch

from core.DAZLE import DAZLE, ClassSpace
from core.ESZSL import ESZSL, GRID, EszslRecipe
from core.features.regions import RegionFeatures
from core.MSDN import MSDN
from core.preparation import prepared_attributes
from core.training.loop import Batches, Fold, Method, Phase, seeded
from core.TransZero import TransZero
from core.VSMR import VSMR, JointRecipe
from core.VSMR_staged import StagedRecipe, VSMRStaged

METHODS = ("vsmr", "vsmr-staged", "dazle", "msdn", "transzero", "eszsl", "dazle-prepared", "eszsl-prepared")
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
    prepared: bool = False  # class attributes as vsmr takes them (core/preparation.py)


DAZLE_RECIPES = {
    "AWA2": DazleRecipe(momentum=0.0, balanced=True, normalize_vectors=True),
    "CUB": DazleRecipe(),
    "CUB50": DazleRecipe(),
    "SUN": DazleRecipe(epochs=100, balanced=True, use_w=False),
    "DEMO": DazleRecipe(lr=5e-4, balanced=True),
}


@dataclass(frozen=True)
class MsdnRecipe:
    """MSDN's settings (paper), trained as DAZLE is."""

    lr: float = 1e-4
    weight_decay: float = 1e-4
    momentum: float = 0.9
    epochs: int = 30
    batch_size: int = 50
    balanced: bool = False
    normalize_vectors: bool = False
    lambda_cal: float = 0.1
    lambda_distill: float = 0.001
    fusion: float = 0.9
    seen_only: bool = False


@dataclass(frozen=True)
class TransZeroRecipe:
    """TransZero's settings (paper)."""

    lr: float = 1e-4
    weight_decay: float = 1e-4
    epochs: int = 200
    batch_size: int = 50
    balanced: bool = False
    width: int = 300
    feed_forward: int = 512
    dropout: float = 0.4
    lambda_cal: float = 0.3
    lambda_reg: float = 0.005
    seen_only: bool = False
    subtract_geometry: bool = False


MSDN_RECIPES = {
    "AWA2": MsdnRecipe(momentum=0.0, balanced=True, normalize_vectors=True),
    "CUB": MsdnRecipe(),
    "CUB50": MsdnRecipe(),
    "SUN": MsdnRecipe(balanced=True),
    "DEMO": MsdnRecipe(lr=5e-4, balanced=True),
}
TRANSZERO_RECIPES = {
    "AWA2": TransZeroRecipe(balanced=True),
    "CUB": TransZeroRecipe(),
    "CUB50": TransZeroRecipe(),
    "SUN": TransZeroRecipe(balanced=True),
    "DEMO": TransZeroRecipe(lr=5e-4, epochs=30, balanced=True),
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


# Published for AWA2 and CUB50. None was for CUB and SUN: the mask's threshold (None) is chosen on validation there,
# and the predictor's learning rate is the one published for AWA2.
STAGED_RECIPES = {
    "AWA2": _AWA2_STAGED,
    "CUB50": _CUB50_STAGED,
    "CUB": replace(_CUB50_STAGED, threshold=None, predictor_lr=1e-3),
    "SUN": replace(_CUB50_STAGED, threshold=None, predictor_lr=1e-3),
    "DEMO": replace(_CUB50_STAGED, threshold=None, predictor_lr=1e-3, images_per_class=20, semantic_epochs=100),
}


# One setting for all; AWA2's and SUN's batches are class-balanced, as in DAZLE's scripts. beta 16 is from photographs
# cropped to the creature; where it is a small part of the picture, as in DEMO, validation prefers more of s1.
JOINT_RECIPES = {
    "AWA2": JointRecipe(balanced=True),
    "CUB": JointRecipe(),
    "CUB50": JointRecipe(),
    "SUN": JointRecipe(balanced=True),
    "DEMO": JointRecipe(lr=1e-3, epochs=20, beta=2.0),
}


_TABLES: dict[str, dict[str, Any]] = {
    "vsmr": JOINT_RECIPES,
    "vsmr-staged": STAGED_RECIPES,
    "msdn": MSDN_RECIPES,
    "transzero": TRANSZERO_RECIPES,
}


def recipe_of(method: str, dataset: str) -> Any:
    """The settings of a method on a data set."""
    if method.startswith("eszsl"):
        return EszslRecipe(prepared=method == "eszsl-prepared")
    if method.startswith("dazle"):
        return replace(DAZLE_RECIPES[dataset], prepared=method == "dazle-prepared")
    return _TABLES[method][dataset]


def most_epochs(recipe: Any) -> int:
    """Length of the phase whose epochs validation chooses, as the recipe has it."""
    if isinstance(recipe, EszslRecipe):
        return 0
    if isinstance(recipe, StagedRecipe):
        return max(1, recipe.visual_iterations // STEP)
    return int(recipe.epochs)


def build(
    method: str,
    recipe: Any,
    fold: Fold,
    shape: tuple[int, int],
    seed: int,
    epochs: int | None = None,
    device: str = "cpu",
    horizon: int | None = None,
) -> Method:
    """A method ready to train on a fold.

    Args:
        shape: (R,D) of the region features.
        epochs: length of its selectable phase (None: the recipe's).
        horizon: the epochs its learning rate is planned for (None: ``epochs``); a run stopped where validation said
            must have the rates of the run that was validated.
    """
    space = fold.space.to(device)
    epochs = most_epochs(recipe) if epochs is None else epochs
    R, D = shape
    if isinstance(recipe, JointRecipe):
        return _joint(recipe, space, D, seed, epochs, horizon or epochs, device)
    if isinstance(recipe, EszslRecipe):
        return _eszsl(recipe, space, D, device)
    if isinstance(recipe, DazleRecipe):
        return _dazle(recipe, space, D, seed, epochs, device)
    if isinstance(recipe, MsdnRecipe):
        return _msdn(recipe, space, D, seed, epochs, device)
    if isinstance(recipe, TransZeroRecipe):
        return _transzero(recipe, space, R, D, seed, epochs, device)
    return _staged(recipe, space, D, seed, epochs, device)


def _joint(r: JointRecipe, space: ClassSpace, D: int, seed: int, epochs: int, horizon: int, device: str) -> Method:
    with seeded(seed):
        model = VSMR(space, D, r).to(device)
    fused = torch.device(device).type in ("cpu", "cuda")  # one pass over the memory: a quarter of the time
    optimizer = torch.optim.AdamW(model.parameters(), lr=r.lr, weight_decay=r.weight_decay, fused=fused)

    def begin(features: RegionFeatures, fold: Fold) -> None:
        pooled = features.pooled(fold.train_rows)  # (N,D)
        model.prepare(pooled, torch.from_numpy(fold.train_labels).to(pooled.device))

    phase = Phase(
        "joint",
        model.loss,
        optimizer,
        Batches(r.batch_size, balanced=r.balanced),
        epochs,
        lr_at=lambda done: r.lr * (1 + cos(pi * done / horizon)) / 2,
        after_epoch=model.renew,
    )
    return Method(model, [phase], begin=begin)


def _eszsl(r: EszslRecipe, space: ClassSpace, D: int, device: str) -> Method:
    model = ESZSL(space, D, r).to(device)

    def begin(features: RegionFeatures, fold: Fold) -> None:
        pooled = features.pooled(fold.train_rows)
        model.decompose(pooled, torch.from_numpy(fold.train_labels).to(pooled.device))
        model.solve(r.regularise_x or 1.0, r.regularise_z or 1.0)

    options = tuple(
        {"regularise_x": x, "regularise_z": z}
        for x in ([r.regularise_x] if r.regularise_x else GRID)
        for z in ([r.regularise_z] if r.regularise_z else GRID)
    )
    return Method(model, [], begin=begin, options=options, configure=lambda option: model.solve(**option))


def _dazle(r: DazleRecipe, space: ClassSpace, D: int, seed: int, epochs: int, device: str) -> Method:
    with seeded(seed):
        model = DAZLE(
            space,
            D,
            lambda_cal=r.lambda_cal,
            use_w=r.use_w,
            normalize_vectors=r.normalize_vectors,
            z=prepared_attributes(space.att, space.seen) if r.prepared else None,
        ).to(device)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.RMSprop(parameters, lr=r.lr, weight_decay=r.weight_decay, momentum=r.momentum)
    batches = Batches(r.batch_size, balanced=r.balanced)
    return Method(model, [Phase("attention", model.loss, optimizer, batches, epochs)])


def _msdn(r: MsdnRecipe, space: ClassSpace, D: int, seed: int, epochs: int, device: str) -> Method:
    with seeded(seed):
        model = MSDN(
            space,
            D,
            lambda_cal=r.lambda_cal,
            lambda_distill=r.lambda_distill,
            fusion=r.fusion,
            seen_only=r.seen_only,
            normalize_vectors=r.normalize_vectors,
        ).to(device)
    optimizer = torch.optim.RMSprop(model.parameters(), lr=r.lr, weight_decay=r.weight_decay, momentum=r.momentum)
    return Method(model, [Phase("mutual", model.loss, optimizer, Batches(r.batch_size, balanced=r.balanced), epochs)])


def _transzero(r: TransZeroRecipe, space: ClassSpace, R: int, D: int, seed: int, epochs: int, device: str) -> Method:
    with seeded(seed):
        model = TransZero(
            space,
            D,
            R,
            width=r.width,
            feed_forward=r.feed_forward,
            dropout=r.dropout,
            lambda_cal=r.lambda_cal,
            lambda_reg=r.lambda_reg,
            seen_only=r.seen_only,
            subtract_geometry=r.subtract_geometry,
        ).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=r.lr, weight_decay=r.weight_decay)
    batches = Batches(r.batch_size, balanced=r.balanced)
    return Method(model, [Phase("transformer", model.loss, optimizer, batches, epochs)])


def _staged(r: StagedRecipe, space: ClassSpace, D: int, seed: int, epochs: int, device: str) -> Method:
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
        epochs,
    )

    def finish(features: RegionFeatures, fold: Fold) -> None:
        total = torch.zeros_like(model.prototypes)
        model.eval()
        labels = torch.from_numpy(fold.train_labels).to(total.device).split(features.block)
        for (_, x), y in zip(features.blocks(fold.train_rows), labels, strict=True):
            model.accumulate(x, y, total)
        counts = torch.from_numpy(np.bincount(fold.train_labels, minlength=len(total))).to(total)
        model.finish(total, counts)

    return Method(model, [predictor, visual], finish)
