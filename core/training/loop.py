"""The training loop: phases of minibatch steps with own generators, checkpointed so that a killed run ends the same.

After every epoch the loop writes one state file. Repeating the command resumes from it; on a CPU the result is
bit-identical to an uninterrupted run.
"""

import contextlib
import hashlib
import io
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from core.features.regions import RegionFeatures, on_device
from core.files.atomic import write_bytes
from core.files.errors import UserError
from core.method import Method, Phase, ZeroShotModel
from core.training.folds import Fold


def train(
    method: Method, features: RegionFeatures, fold: Fold, *, seed: int, stop_after: int | None = None,
    state_path: Path | None = None, identity: dict[str, Any] | None = None,
    on_epoch: Callable[[dict[str, Any]], None] | None = None, precision: str = "float32",
) -> list[dict[str, Any]]:  # fmt: skip
    """Run all phases; returns the history, one dict per epoch. The caller's random numbers are left as they were.

    Args:
        stop_after: epochs after which a selectable phase ends, as validation chose them; its schedule stays the
            planned one, so the refitted model has the learning rates of the model that was validated. None: all.
        state_path, identity: where the resumable state is kept, if at all; that of another run is refused.
        on_epoch: called with the row of every epoch of a selectable phase, which it may extend; before its first step
            too, as epoch 0.
        precision: of the products in a training step; parameters, losses and evaluation are float32.
    """
    with torch.random.fork_rng(devices=[features.device] if features.device.type == "cuda" else []):
        torch.manual_seed(seed)  # dropout
        generator = np.random.default_rng(seed)
        begun, done, history = 0, 0, list[dict[str, Any]]()  # phase, its finished epochs
        if state_path and state_path.exists():
            begun, done, history = _restore(state_path, method, generator, identity)
        elif method.begin:
            method.begin(fold.train_images(features))
        for index, phase in enumerate(method.phases[begun:], begun):
            first, last = done if index == begun else 0, phase.epochs
            watch = on_epoch if phase.selectable else None
            if phase.selectable and stop_after is not None:
                last = min(last, stop_after)
            if watch and first == 0:
                history.append({"phase": phase.name, "epoch": 0})
                watch(history[-1])
            made = phase.made(fold.train_images(features)) if phase.made and first < last else None
            for epoch in tqdm(range(first, last), phase.name, last, initial=first, leave=False, disable=None):
                row: dict[str, Any] = {"phase": phase.name, "epoch": epoch + 1}
                row |= _epoch(method.model, phase, epoch, features, fold, generator, precision, made)
                if watch:
                    watch(row)
                history.append(row)
                if state_path:
                    _store(state_path, method, generator, identity, index, epoch + 1, history)
        return history


def _epoch(
    model: ZeroShotModel, phase: Phase, epoch: int, features: RegionFeatures, fold: Fold,
    generator: np.random.Generator, precision: str, made: tuple[Tensor, Tensor] | None = None,
) -> dict[str, float]:  # fmt: skip
    """One pass over the phase's batches; the mean of every loss over its steps."""
    model.train()
    sums: dict[str, Tensor] = {}
    classes = fold.train_labels if made is None else made[1].cpu().numpy()
    drawn = list(phase.batches.epoch(classes, generator))
    rows = [fold.train_rows[positions] for positions in drawn] if made is None else []
    xs: Iterable[Tensor] = map(features.pooled, rows) if phase.pooled else features.batches(rows)
    if made is not None:
        xs = (made[0][positions] for positions in drawn)
    labels = on_device(torch.from_numpy(classes[np.concatenate(drawn)]), features.device)
    batches = zip(xs, labels.split([len(positions) for positions in drawn]), strict=True)
    for step, (x, y) in enumerate(batches):
        if phase.lr_at:
            for group in phase.optimizer.param_groups:
                group["lr"] = phase.lr_at(epoch + step / len(drawn))
        phase.optimizer.zero_grad(set_to_none=True)
        half = precision == "bfloat16"
        with torch.autocast(x.device.type, torch.bfloat16) if half else contextlib.nullcontext():
            losses = phase.loss(x, y)
        if not phase.others:
            losses["loss"].backward()
            phase.optimizer.step()
        for key, value in losses.items():  # summed on the device: no synchronisation inside the step
            sums[key] = sums.get(key, 0) + value.detach()
    if phase.after_epoch:
        phase.after_epoch()
    means = {key: float(value) / len(drawn) for key, value in sums.items()}
    if not np.isfinite(means["loss"]):
        raise UserError(f"the loss of phase {phase.name} is {means['loss']}: training diverged; try a lower --lr")
    return means


def _optimizers(phase: Phase) -> tuple[torch.optim.Optimizer, ...]:
    return phase.optimizer, *phase.others


def _store(
    path: Path, method: Method, generator: np.random.Generator, identity: Any, phase: int, epoch: int, history: Any
) -> None:
    content = io.BytesIO()
    kept = {"identity": identity, "phase": phase, "epoch": epoch, "history": history}
    kept |= {
        "model": method.model.state_dict(),
        "optimizers": [o.state_dict() for o in _optimizers(method.phases[phase])],
    }
    torch.save(kept | {"torch": torch.get_rng_state(), "numpy": generator.bit_generator.state}, content)
    write_bytes(path, hashlib.sha256(content.getvalue()).digest() + content.getvalue())


def _restore(
    path: Path, method: Method, generator: np.random.Generator, identity: Any
) -> tuple[int, int, list[dict[str, Any]]]:
    """Take a state up; its phase, the finished epochs of that phase, and the history so far."""
    content = path.read_bytes()
    if hashlib.sha256(content[32:]).digest() != content[:32]:
        raise UserError(f"{path} is damaged; delete it to train again")
    kept = torch.load(io.BytesIO(content[32:]), map_location="cpu", weights_only=True)
    if kept["identity"] != identity:
        known, now = kept["identity"] or {}, identity or {}
        differ = ", ".join(sorted(k for k in {*known, *now} if known.get(k) != now.get(k)))
        raise UserError(f"{path} belongs to a run with other {differ}; delete it or choose another --out to start anew")
    method.model.load_state_dict(kept["model"])
    for optimizer, state in zip(_optimizers(method.phases[kept["phase"]]), kept["optimizers"], strict=True):
        optimizer.load_state_dict(state)
    generator.bit_generator.state = kept["numpy"]
    torch.set_rng_state(kept["torch"])
    return kept["phase"], kept["epoch"], kept["history"]


@torch.no_grad()
def score_pieces(model: ZeroShotModel, features: RegionFeatures, rows: np.ndarray) -> Iterator[np.ndarray]:
    """Scores (n,C) in float32 of the images in ``rows``, in evaluation mode, block by block."""
    model.eval()
    for _, x in features.means(rows) if model.uses_pooled_features else features.blocks(rows):
        yield model.class_scores(x).cpu().numpy()


def class_scores(model: ZeroShotModel, features: RegionFeatures, rows: np.ndarray) -> np.ndarray:
    """(N,C) float32 scores of the images in ``rows``, in evaluation mode."""
    return np.concatenate([*score_pieces(model, features, rows)])
