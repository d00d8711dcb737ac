"""A finished run's model, from its checkpoint alone."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from core.files.errors import UserError
from core.method import AttentionOutput, ClassSpace, ZeroShotModel, find_method, with_settings
from core.training.checkpoint import load_checkpoint
from core.training.evaluation import calibrated

SIDES = ("all", "seen", "unseen")


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A model in evaluation mode, and what its checkpoint says of it.

    Classes described after training (core/inference/added_classes.py) stand behind the run's own and are unseen. They
    are scored by a copy of the model that knows them, so that the run's own classes keep their scores to the bit.
    """

    model: ZeroShotModel
    space: ClassSpace  # of all classes
    gamma: float  # added to the scores of unseen classes
    classes: list[str]  # (C,)
    attributes: list[str]  # (K,)
    config: dict[str, Any]  # the run's identity
    recipe: dict[str, Any] = field(default_factory=dict)  # with what validation chose
    shape: tuple[int, int] = (0, 0)  # (R,D)
    backbone: dict[str, Any] = field(default_factory=dict)  # what made the regions
    added: ZeroShotModel | None = None  # knows all classes; None: none was added
    removed: frozenset[int] = frozenset()  # class numbers that are no candidates any more

    @property
    def device(self) -> torch.device:
        return next(iter(self.model.state_dict().values())).device

    @property
    def offered(self) -> list[int]:
        """Numbers of the classes that can be predicted."""
        return [c for c in range(len(self.classes)) if c not in self.removed]

    def of_side(self, side: str) -> np.ndarray:
        """Numbers of the offered classes of a side (:data:`SIDES`).

        Raises:
            UserError: there is none.
        """
        sides = {"seen": self.space.seen.tolist(), "unseen": self.space.unseen.tolist()}
        wanted = set(sides["seen"] + sides["unseen"] if side == "all" else sides[side])
        found = [c for c in self.offered if c in wanted]
        if not found:
            raise UserError(f"no class to choose from: this model has no {side if side != 'all' else ''} class left")
        return np.array(found)

    @property
    def z(self) -> Tensor | None:
        """(C,K) class attributes as the model takes them; None for a model that keeps no such matrix."""
        z = getattr(self.added or self.model, "z", None)
        return z if isinstance(z, Tensor) else None

    @torch.no_grad()
    def scores(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Scores (B,C) of regions x (B,R,D) without γ, and what attributes say (B,K) where the method can split it."""
        with _observed(self.model) as seen:
            own = self.model.class_scores(x)
        evidence = self.model.evidence(x, seen[0] if seen else None)
        if self.added is None:
            return own, evidence
        return torch.cat([own, self.added.class_scores(x)[:, own.shape[1] :]], dim=1), evidence

    def calibrated(self, scores: np.ndarray, among: str = "all") -> np.ndarray:
        """(B,C) float64 scores with γ added to unseen classes; -inf for what is not offered ``among`` that side."""
        chosen = self.of_side(among)
        out = calibrated(scores, self.space.seen.numpy(), self.space.unseen.numpy(), self.gamma)
        kept = np.full_like(out, -np.inf)
        kept[:, chosen] = out[:, chosen]
        return kept


@contextlib.contextmanager
def _observed(model: ZeroShotModel) -> Any:
    """What ``model.attend`` finds meanwhile: class scores rest on it, and it is most of their work."""
    found: list[AttentionOutput | None] = []
    attend = model.attend

    def observing(x: Tensor) -> AttentionOutput | None:
        found.append(attend(x))
        return found[-1]

    model.attend = observing  # type: ignore[method-assign]
    try:
        yield found
    finally:
        del model.attend  # the class's own again


def build_model(config: dict[str, Any], recipe: dict[str, Any], space: ClassSpace, shape: Any) -> ZeroShotModel:
    """The untrained model of a run for a class space; shape (R,D)."""
    method = find_method(config["method"])
    settings = with_settings(method.recipe_type(), recipe)
    R, D = shape
    return method.build(settings, space, (R, D), config["seed"], config["epochs"]).model


def load_trained(folder: Path, device: torch.device | str = "cpu") -> Trained:
    """The model of a finished run.

    Raises:
        UserError: no checkpoint there, or one that is damaged or of another version.
    """
    path = checkpoint_of(Path(folder))
    tensors, meta = load_checkpoint(path)
    parts = {name: {k.removeprefix(f"{name}."): v for k, v in tensors.items() if k.startswith(f"{name}.")} for name in
             ("model", "space")}  # fmt: skip
    try:
        space = ClassSpace(**parts["space"])
        model = build_model(meta["config"], meta["recipe"], space, meta["shape"])
        model.load_state_dict(parts["model"])
        classes, attributes = [str(c) for c in meta["classes"]], [str(a) for a in meta["attributes"]]
        trained = Trained(
            model=model.to(device).eval(),
            space=space,
            gamma=float(meta["gamma"]),
            classes=classes,
            attributes=attributes,
            config=meta["config"],
            recipe=meta["recipe"],
            shape=(int(meta["shape"][0]), int(meta["shape"][1])),
            # runs from before the record was kept: their features' provenance has it, and all were stored as float16
            backbone={"store": "float16"} | (meta.get("backbone") or meta["config"]["features"]),
        )
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"{path} was written by another version of this code ({type(error).__name__}: {error}); run it again"
        ) from error
    C, K = space.att.shape
    if (len(classes), len(attributes)) != (C, K):
        raise UserError(
            f"{path} names {len(classes)} classes and {len(attributes)} attributes, but describes {C} classes by {K}; "
            "it is no checkpoint of this code: run it again"
        )
    return trained


def checkpoint_of(folder: Path) -> Path:
    """The checkpoint in a run's folder.

    Raises:
        UserError: there is none; says what there is in its place.
    """
    path = folder / "checkpoint.safetensors"
    if path.is_file():
        return path
    if not folder.is_dir():
        raise UserError(
            f"no folder {folder}; name that of a finished run, RESULTS/<data set>/<features>/<method>/seed<k>, which a "
            "driver such as `python AWA2_ours.py` makes"
        )
    below = sorted(str(p.parent) for p in folder.glob("**/checkpoint.safetensors"))[:4]
    if below:
        raise UserError(f"{folder} is not the folder of one run; there are {', '.join(below)}: name one of them")
    if any((folder / name).exists() for name in ("log.jsonl", "validation.state", "refit.state", "run.lock")):
        raise UserError(f"the run in {folder} is not finished; run the same command again, and it continues")
    raise UserError(f"{folder} holds no checkpoint.safetensors: it is not the folder of a finished run")


def grid_said(regions: str) -> tuple[int, int] | None:
    """Rows and columns of the regions as a feature file's provenance says them (``7x7``); None where it says none."""
    h, _, w = regions.partition("x")
    return (int(h), int(w)) if h.isdigit() and w.isdigit() else None
