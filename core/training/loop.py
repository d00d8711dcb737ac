"""The training loop: phases of minibatch steps with own generators, checkpointed so that a killed run ends the same.

After every epoch the loop writes one state file. Repeating the command resumes from it; on a CPU the result is
bit-identical to an uninterrupted run.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from core.features.regions import RegionFeatures, on_device
from core.files.errors import UserError
from core.method import Method, Phase, ZeroShotModel
from core.training.checkpoint import load_checkpoint, pack_optimizer, save_checkpoint, unpack_optimizer
from core.training.folds import Fold

PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16}
_PIECE = 1 << 26  # scores: 256 MiB


@dataclass
class _State:
    phase: int = 0
    epoch: int = 0  # finished epochs of that phase
    history: list[dict[str, Any]] = field(default_factory=list)


def train(
    method: Method,
    features: RegionFeatures,
    fold: Fold,
    *,
    seed: int,
    stop_after: int | None = None,
    state_path: Path | None = None,
    identity: dict[str, Any] | None = None,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
    label: str = "train",
    precision: str = "float32",
) -> list[dict[str, Any]]:
    """Run all phases; returns the history, one dict per epoch. The caller's random numbers are left as they were.

    Args:
        stop_after: epochs after which a selectable phase ends, as validation chose them; its schedule stays the
            planned one, so the refitted model has the learning rates of the model that was validated. None: all.
        state_path: where the resumable state is kept; None keeps none.
        identity: what the run is; a state file of another run is refused.
        on_epoch: called with the row of every epoch of a selectable phase, which it may extend; before its first step
            too, as epoch 0.
        precision: of the products in a training step, a key of PRECISIONS; parameters, losses and evaluation are
            float32.
    """
    devices = [features.device] if features.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)  # dropout
        state, generator = _State(), np.random.default_rng(seed)
        if state_path and state_path.exists():
            _restore(state_path, method, state, generator, identity or {})
        elif method.begin:
            method.begin(fold.train_images(features))
        lengths = [
            p.epochs if stop_after is None or not p.selectable else min(p.epochs, stop_after) for p in method.phases
        ]
        done = sum(lengths[: state.phase]) + state.epoch
        with tqdm(total=sum(lengths), initial=done, desc=label, unit="epoch", leave=False, disable=None) as bar:
            for index in range(state.phase, len(method.phases)):
                phase = method.phases[index]
                first = state.epoch if index == state.phase else 0
                if on_epoch and phase.selectable and first == 0:
                    start: dict[str, Any] = {"phase": phase.name, "epoch": 0}
                    on_epoch(start)
                    state.history.append(start)
                made = phase.made(fold.train_images(features)) if phase.made and first < lengths[index] else None
                for epoch in range(first, lengths[index]):
                    row: dict[str, Any] = {"phase": phase.name, "epoch": epoch + 1}
                    row |= _epoch(method.model, phase, epoch, features, fold, generator, PRECISIONS[precision], made)
                    if on_epoch and phase.selectable:
                        on_epoch(row)
                    state.history.append(row)
                    state.phase, state.epoch = index, epoch + 1
                    if state_path:
                        _store(state_path, method, state, generator, identity or {})
                    bar.update()
        return state.history


def _epoch(
    model: ZeroShotModel,
    phase: Phase,
    epoch: int,
    features: RegionFeatures,
    fold: Fold,
    generator: np.random.Generator,
    autocast_dtype: torch.dtype | None,
    made: tuple[Tensor, Tensor] | None,
) -> dict[str, float]:
    model.train()
    sums: dict[str, Tensor] = {}
    classes = fold.train_labels if made is None else made[1].cpu().numpy()
    drawn = list(phase.batches.epoch(classes, generator))
    rows = [fold.train_rows[positions] for positions in drawn] if made is None else []
    if made is not None:
        xs: Iterable[Tensor] = (made[0][positions] for positions in drawn)
    elif phase.pooled:
        xs = map(features.pooled, rows)
    else:
        xs = features.batches(rows)
    labels = on_device(torch.from_numpy(classes[np.concatenate(drawn)]), features.device)
    batches = zip(xs, labels.split([len(positions) for positions in drawn]), strict=True)
    for step, (x, y) in enumerate(batches):
        if phase.lr_at:
            for group in phase.optimizer.param_groups:
                group["lr"] = phase.lr_at(epoch + step / len(drawn))
        phase.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(x.device.type, dtype=autocast_dtype) if autocast_dtype else contextlib.nullcontext():
            losses = phase.loss(x, y)
        losses["loss"].backward()
        phase.optimizer.step()
        for key, value in losses.items():  # summed on the device: no synchronisation inside the step
            value = value.detach()
            sums[key] = sums[key] + value if key in sums else value
    if phase.after_epoch:
        phase.after_epoch()
    means = {key: float(value) / len(drawn) for key, value in sums.items()}
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
def score_pieces(model: ZeroShotModel, features: RegionFeatures, rows: np.ndarray) -> Iterator[np.ndarray]:
    """Scores (n,C) in float32 of the images in ``rows``, in evaluation mode; one piece where there are not very many.

    A piece comes back from a GPU at once, so that it need not wait for the host between batches.
    """
    model.eval()
    pieces: list[Tensor] = []
    for _, x in features.means(rows) if model.of_means else features.blocks(rows):
        pieces.append(model.class_scores(x))
        if sum(piece.numel() for piece in pieces) >= _PIECE:
            yield _together(pieces)
    if pieces:
        yield _together(pieces)


def _together(pieces: list[Tensor]) -> np.ndarray:
    """Their rows (n,C); the list is empty then, so that they are not held beside."""
    whole = torch.cat(pieces)
    pieces.clear()
    return whole.cpu().numpy()


def class_scores(model: ZeroShotModel, features: RegionFeatures, rows: np.ndarray) -> np.ndarray:
    """(N,C) float32 scores of the images in ``rows``, in evaluation mode."""
    pieces = list(score_pieces(model, features, rows))
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
