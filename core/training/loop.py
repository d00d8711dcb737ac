"""The training loop: phases of minibatch steps with own generators, checkpointed so that a killed run ends the same.

A method is a list of phases (ESZSL has none, DAZLE one, the staged VSMR two), an optional closed-form start from the
training images, and an optional closing step that is run before every evaluation. Epoch by epoch the loop writes one
state file; with the same command a killed run continues from it, and
ends bit-identical on a CPU.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from core.datasets.xlsa17 import Metadata, class_disjoint_split
from core.DAZLE import ClassSpace
from core.features.regions import RegionFeatures, on_device
from core.files.errors import UserError
from core.lockstep import Loss, Losses, Run, Step, alone
from core.training.checkpoint import load_checkpoint, pack_optimizer, save_checkpoint, unpack_optimizer


@dataclass(frozen=True)
class Fold:
    """What is trained on and what is measured on; labels are class numbers of ``space``."""

    space: ClassSpace
    train_rows: np.ndarray
    train_labels: np.ndarray
    seen_rows: np.ndarray  # images of seen classes that are not trained on
    seen_labels: np.ndarray
    unseen_rows: np.ndarray
    unseen_labels: np.ndarray

    @property
    def rows(self) -> np.ndarray:
        """Every row the fold touches."""
        return np.concatenate([self.train_rows, self.seen_rows, self.unseen_rows])


PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16}
HELD_OUT = 0.2  # share of each training class's images that stands for test_seen during validation


def test_fold(m: Metadata, w2v: np.ndarray) -> Fold:
    """Train on trainval, measure on the test sets: the numbers that are reported."""
    space = _space(m.att, m.seen, m.unseen, w2v)
    return Fold(
        space,
        m.trainval_loc,
        m.labels[m.trainval_loc],
        m.test_seen_loc,
        m.labels[m.test_seen_loc],
        m.test_unseen_loc,
        m.labels[m.test_unseen_loc],
    )


def validation_fold(m: Metadata, w2v: np.ndarray, seed: int = 0) -> Fold:
    """Train on train_loc less a held-out share, measure on that share and on val_loc: everything is chosen here.

    Only the classes of trainval exist in this fold; nothing of the true unseen classes, not even attributes, enters.
    Seed 0 takes the metadata's own train and val classes (xlsa17's where it has them); any other seed redraws them, as
    many as there are, so that a choice need not rest on one split.
    """
    train_loc, val_loc = m.train_loc, m.val_loc
    if seed:
        share = len(np.unique(m.labels[m.val_loc])) / len(m.seen)
        train_loc, val_loc = class_disjoint_split(m.labels, m.trainval_loc, share, seed)
    classes = m.seen
    number = np.full(len(m.class_names), -1, dtype=np.int64)
    number[classes] = np.arange(len(classes))
    rng = np.random.default_rng(seed)
    held = []
    for c in np.unique(m.labels[train_loc]):
        rows = rng.permutation(train_loc[m.labels[train_loc] == c])
        if len(rows) < 2:
            raise UserError(f"class {m.class_names[c]} has one training image; validation needs two or more")
        held.append(rows[: max(1, round(HELD_OUT * len(rows)))])
    held_rows = np.sort(np.concatenate(held))
    train = np.setdiff1d(train_loc, held_rows)
    labels = number[m.labels]
    space = _space(m.att[classes], np.unique(labels[train]), np.unique(labels[val_loc]), w2v)
    return Fold(space, train, labels[train], held_rows, labels[held_rows], val_loc, labels[val_loc])


def _space(att: np.ndarray, seen: np.ndarray, unseen: np.ndarray, w2v: np.ndarray) -> ClassSpace:
    if att.shape[1] != len(w2v):
        raise UserError(f"{len(w2v)} attribute vectors for {att.shape[1]} attributes; are they of another data set?")
    return ClassSpace(*(torch.from_numpy(np.ascontiguousarray(a)) for a in (att, seen, unseen, w2v.astype(np.float32))))


@dataclass(frozen=True)
class Batches:
    """How rows are drawn. An epoch is ``steps`` batches (None: as many as cover the training images once)."""

    size: int
    balanced: bool = False  # draw a class, then one of its images; else every image once an epoch
    steps: int | None = None
    classes: int | None = None  # with per_class: batches of that many classes x images (drawn with replacement)
    per_class: int = 0

    def count(self, images: int) -> int:
        """Batches in an epoch over that many training images."""
        return self.steps or -(-images // self.size)

    def epoch(self, labels: np.ndarray, generator: np.random.Generator) -> Iterator[np.ndarray]:
        """Positions in ``labels`` of each batch of one epoch."""
        steps = self.count(len(labels))
        if self.classes is None and not self.balanced:
            order = generator.permutation(len(labels))
            for step in range(steps):
                yield order[step * self.size : (step + 1) * self.size]
            return
        grouped = np.argsort(labels, kind="stable")
        present, starts, counts = np.unique(labels[grouped], return_index=True, return_counts=True)
        for _ in range(steps):
            if self.classes is None:
                drawn = generator.integers(len(present), size=self.size)
            else:
                some = generator.permutation(len(present))[: self.classes]
                drawn = np.repeat(some, self.per_class)
            yield grouped[starts[drawn] + (generator.random(len(drawn)) * counts[drawn]).astype(np.int64)]


@dataclass
class Phase:
    """One stretch of training."""

    name: str
    loss: Loss
    optimizer: torch.optim.Optimizer
    batches: Batches
    epochs: int
    selectable: bool = True  # its number of epochs is what validation chooses, 0 included
    pooled: bool = False  # the loss takes (B,D) means instead of (B,R,D) regions
    lr_at: Callable[[float], float] | None = None  # learning rate after that many epochs (a fraction within one)
    after_epoch: Callable[[], None] | None = None


@dataclass
class Method:
    """A model with its phases.

    ``begin`` is run once, before the first step; ``finish`` before each evaluation (class prototypes and the like).
    ``options`` are settings that validation chooses among and ``configure`` applies, without training again.
    """

    model: nn.Module
    phases: list[Phase]
    finish: Callable[[RegionFeatures, Fold], None] | None = None
    begin: Callable[[RegionFeatures, Fold], None] | None = None
    options: tuple[dict[str, float], ...] = ()
    configure: Callable[[dict[str, float]], None] | None = None


@dataclass
class _State:
    phase: int = 0
    epoch: int = 0  # finished epochs of that phase
    history: list[dict[str, Any]] = field(default_factory=list)


def training(
    method: Method,
    features: RegionFeatures,
    fold: Fold,
    seed: int,
    state_path: Path | None = None,
    identity: dict[str, Any] | None = None,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
    label: str = "train",
    precision: str = "float32",
) -> Run[list[dict[str, Any]]]:
    """Run all phases; returns the history, one dict per epoch. A coroutine (core/lockstep.py); :func:`train` drives it.

    Args:
        state_path: where the resumable state is kept; None keeps none.
        identity: what the run is; a state file of another run is refused.
        on_epoch: called with the row of every epoch of a selectable phase, which it may extend; before its first step
            too, as epoch 0.
        precision: of the products in a training step, a key of PRECISIONS; parameters, losses and evaluation are
            float32.
    """
    state = _State()
    row: dict[str, Any]
    generator = np.random.default_rng(seed)
    torch.manual_seed(seed)  # dropout
    if state_path and state_path.exists():
        _restore(state_path, method, state, generator, identity or {})
    elif method.begin:
        method.begin(features, fold)
    total = sum(p.epochs for p in method.phases)
    done = sum(p.epochs for p in method.phases[: state.phase]) + state.epoch
    with tqdm(total=total, initial=done, desc=label, unit="epoch", leave=False, disable=None) as bar:
        for index in range(state.phase, len(method.phases)):
            phase = method.phases[index]
            first = state.epoch if index == state.phase else 0
            if on_epoch and phase.selectable and first == 0:
                row = {"phase": phase.name, "epoch": 0}
                on_epoch(row)
                state.history.append(row)
            for epoch in range(first, phase.epochs):
                row = {"phase": phase.name, "epoch": epoch + 1}
                row |= yield from _epoch(method.model, phase, epoch, features, fold, generator, PRECISIONS[precision])
                if on_epoch and phase.selectable:
                    on_epoch(row)
                state.history.append(row)
                state.phase, state.epoch = index, epoch + 1
                if state_path:
                    _store(state_path, method, state, generator, identity or {})
                bar.update()
    return state.history


train = alone(training)


def _epoch(
    model: nn.Module,
    phase: Phase,
    epoch: int,
    features: RegionFeatures,
    fold: Fold,
    generator: np.random.Generator,
    low: torch.dtype | None,
) -> Run[dict[str, float]]:
    model.train()
    sums: dict[str, Tensor] = {}
    steps = 0
    drawn = list(phase.batches.epoch(fold.train_labels, generator))
    rows = [fold.train_rows[positions] for positions in drawn]
    xs = map(features.pooled, rows) if phase.pooled else features.batches(rows)
    labels = on_device(torch.from_numpy(fold.train_labels[np.concatenate(drawn)]), features.device)
    for x, y in zip(xs, labels.split([len(positions) for positions in drawn]), strict=True):
        if phase.lr_at:
            for group in phase.optimizer.param_groups:
                group["lr"] = phase.lr_at(epoch + steps / len(drawn))
        phase.optimizer.zero_grad(set_to_none=True)
        losses: Losses = yield Step(model, phase.loss, x, y, low)
        phase.optimizer.step()
        for key, value in losses.items():  # summed on the device: no synchronisation inside the step
            sums[key] = sums[key] + value if key in sums else value
        steps += 1
    if phase.after_epoch:
        phase.after_epoch()
    means = {key: float(value) / steps for key, value in sums.items()}
    if not np.isfinite(means["loss"]):
        raise UserError(f"the loss of phase {phase.name} is {means['loss']}: training diverged; try a lower --lr")
    return means


def _store(path: Path, method: Method, state: _State, generator: np.random.Generator, identity: dict[str, Any]) -> None:
    tensors = {f"model.{k}": v for k, v in method.model.state_dict().items()}
    optimizer, packed = pack_optimizer(method.phases[state.phase].optimizer)
    tensors |= optimizer
    tensors["rng.torch"] = torch.get_rng_state()
    meta = {
        "identity": identity,
        "phase": state.phase,
        "epoch": state.epoch,
        "history": state.history,
        "optimizer": packed,
        "rng": generator.bit_generator.state,
    }
    save_checkpoint(path, tensors, meta)


def _restore(
    path: Path, method: Method, state: _State, generator: np.random.Generator, identity: dict[str, Any]
) -> None:
    tensors, meta = load_checkpoint(path)
    if meta["identity"] != identity:
        differ = sorted(k for k in identity | meta["identity"] if identity.get(k) != meta["identity"].get(k))
        raise UserError(
            f"{path} belongs to a run with other {', '.join(differ)}; delete it or choose another --out to start anew"
        )
    method.model.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model.")})
    state.phase, state.epoch, state.history = meta["phase"], meta["epoch"], meta["history"]
    unpack_optimizer(method.phases[state.phase].optimizer, tensors, meta["optimizer"])
    generator.bit_generator.state = meta["rng"]
    torch.set_rng_state(tensors["rng.torch"])


@torch.no_grad()
def class_scores(model: Any, features: RegionFeatures, rows: np.ndarray) -> np.ndarray:
    """(N,C) float32 scores of the images in ``rows``, in evaluation mode."""
    model.eval()
    return torch.cat([model.class_scores(x) for _, x in features.blocks(rows)]).cpu().numpy()


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Build a model from ``seed`` without touching the caller's random numbers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
