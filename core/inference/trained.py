"""A finished run's model, from its checkpoint alone."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from core.ensemble import Ensemble
from core.files.errors import UserError
from core.method import ClassSpace, ZeroShotModel, with_settings
from core.methods import find_method
from core.preparation import ClassEncoder
from core.training.certainty import encoded_rivals
from core.training.checkpoint import load_checkpoint
from core.training.evaluation import calibrated

CHECKPOINT = "checkpoint.safetensors"
USE = "use"  # the folder of a model that was refitted on every photograph, beside those of the seeds that were measured
SIDES = ("all", "seen", "unseen")
BOX = Path(__file__).resolve().parents[2] / "models"  # that come along, each called by the name of its folder


@dataclass(frozen=True, kw_only=True)
class Added:
    """Classes that came after training, known by descriptions, by photographs, or by both."""

    weights: Tensor  # (A,K) class attributes, times the description's share; 0: no description
    correction: Tensor  # (A,) hubness
    likeness: Tensor | None  # (A,d) unit mean of their photographs, times the photographs' share; 0: no photograph
    gamma: Tensor  # (A,) share of γ
    numbers: list[int] = field(default_factory=list)  # (A,) new classes, and unseen ones of the run that are shown now


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A model in evaluation mode, and what its checkpoint says of it.

    Classes added after training (core/inference/added_classes.py) stand behind the run's own and are unseen.
    """

    model: ZeroShotModel
    space: ClassSpace  # of all classes
    gamma: float  # added to the scores of unseen classes
    classes: list[str]  # (C,)
    attributes: list[str]  # (K,)
    config: dict[str, Any]  # the run's identity
    shape: tuple[int, int] = (0, 0)  # (R,D)
    backbone: dict[str, Any] = field(default_factory=dict)  # what made the regions
    beside: Sequence[dict[str, Any]] = ()  # what made the others that an ensemble looks at
    # what validation says of the answers, in points (core/training/certainty.py); empty: nothing was validated
    certainty: dict[str, Any] = field(default_factory=dict)
    groups: list[str] = field(default_factory=list)  # (C,) genus, family or the like of a class; "": none
    added: tuple[Added, ...] = ()  # of a class in several the last counts

    @property
    def device(self) -> torch.device:
        return next(iter(self.model.state_dict().values())).device

    @property
    def encoder(self) -> ClassEncoder | None:
        """What scores a class from its description; None where the method cannot say."""
        moved = {name: of.to(self.device) for name, of in vars(self.space).items() if of is not None}
        return self.model.class_encoder(replace(self.space, **moved))

    @cached_property
    def rivals(self) -> tuple[Tensor, Tensor] | None:
        """Virtual classes that an answer must be ahead of; None where the method cannot score a description."""
        return encoded_rivals(self.model, self.space)

    @property
    def gamma_shares(self) -> Tensor:
        """(C,) of γ: 0 for seen classes, 1 for unseen ones, and less for those that photographs were given of."""
        shares = torch.zeros(len(self.classes))
        shares[self.space.unseen] = 1
        for added in self.added:
            shares[added.numbers] = added.gamma
        return shares

    def of_side(self, side: str) -> np.ndarray:
        """Numbers of the classes of a side (:data:`SIDES`), ascending; refused where there is none."""
        seen, unseen = self.space.seen, self.space.unseen
        numbers = {"all": torch.cat([seen, unseen]), "seen": seen, "unseen": unseen}.get(side, seen[:0])
        if not len(numbers):
            raise UserError(f"this model has no {side} class to choose from; choose among {', '.join(SIDES)}")
        return np.sort(numbers.cpu().numpy())

    def gamma_said(self) -> str:
        """What γ does, in words, with both accuracies on validation where the run keeps them."""
        if not (sure := self.certainty):
            said = "This run was not validated (or is of before 0.3), so it has no probabilities and no 'none of these'"
            return f"γ = {self.gamma:.3g} is added to unseen classes. {said}"
        s, u = (np.interp(self.gamma, sure["gammas"], sure[key]) for key in ("S", "U"))
        return (
            f"γ = {self.gamma:.3g} is added to classes without training images; on validation {s:.0%} of photographs "
            f"of classes with training images are named rightly then, and {u:.0%} of those without"
        )

    def calibrated(self, scores: np.ndarray, among: str = "all") -> np.ndarray:
        """(B,C) float64 scores with γ added to unseen classes; -inf for classes that are not of the side ``among``."""
        chosen = self.of_side(among)
        seen, unseen = self.space.seen.numpy(), self.space.unseen.numpy()
        out = calibrated(scores, seen, unseen, self.gamma * self.gamma_shares.double().numpy()[unseen])
        out[:, np.setdiff1d(np.arange(out.shape[1]), chosen)] = -np.inf
        return out


def load_trained(folder: Path | str, device: torch.device | str = "cpu") -> Trained:
    """The model of a finished run."""
    path = Path(folder) / CHECKPOINT
    tensors, meta = load_checkpoint(path)
    parts = {name: {k.removeprefix(f"{name}."): v for k, v in tensors.items() if k.startswith(f"{name}.")} for name in
             ("model", "space")}  # fmt: skip
    try:
        space = ClassSpace(**parts["space"])
        record, models = meta.get("ensemble"), list[ZeroShotModel]()
        for member in record["members"] if record else [meta]:
            method, config, (R, D) = find_method(member["config"]["method"]), member["config"], member["shape"]
            recipe = with_settings(method.recipe_type(), member["recipe"])
            models.append(method.build(recipe, space, (R, D), config["seed"], config["epochs"]).model)
        model, attributes, backbones = models[0], meta["attributes"], [meta["backbone"]]
        if record:
            model = Ensemble(models, record["views"], record["widths"], [1.0] * len(models))
            made = dict(zip(record["views"], record["members"], strict=True))
            backbones = [made[view]["backbone"] for view in sorted(made)]
            attributes = [f"{name} ({of})" for of in record["names"] for name in attributes]
        # runs of before: without what follows from the space, and MSDN's parameters under another name
        own = model.state_dict()
        of_space = {key: value for key, value in own.items() if key.rpartition(".")[2] in ("seen", "place")}
        stored = {key if key in own else key.replace("attention.", ""): v for key, v in parts["model"].items()}
        model.load_state_dict(of_space | stored)
        return Trained(
            model=model.to(device).eval(), space=space, gamma=meta["gamma"], classes=meta["classes"],
            attributes=attributes, config=meta["config"], certainty=meta.get("certainty", {}),
            groups=meta.get("groups", []), shape=tuple(meta["shape"]), backbone=backbones[0], beside=backbones[1:],
        )  # fmt: skip
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"{path} was written by another version of this code ({type(error).__name__}: {error}); run it again"
        ) from error


def find_run(folder: Path | str) -> Path:
    """Of the folder and all below it the only model for use, or the only finished run; else the model that comes along
    and has that name (``birds``).
    """
    folder = Path(folder)
    runs = sorted(path.parent for path in folder.glob(f"**/{CHECKPOINT}"))
    runs = [run for run in runs if run.name == USE] or runs
    if len(runs) == 1:
        return runs[0]
    if not runs and (BOX / folder / CHECKPOINT).is_file():
        return BOX / folder
    if runs:
        found = "\n  ".join(map(str, runs[:8]))
        raise UserError(f"{folder} holds {len(runs)} finished runs; name the one that is to answer:\n  {found}")
    raise UserError(
        f"no finished run in {folder}: name RESULTS/<data set>/<features>/<method>/seed<k>, as `python AWA2_ours.py` "
        "makes it (what was interrupted goes on with the same command), or birds, the model that comes along"
    )


def grid_said(regions: str) -> tuple[int, int] | None:
    """Rows and columns of the regions as a feature file's provenance says them (``7x7``); None where it says none."""
    h, _, w = regions.partition("x")
    return (int(h), int(w)) if h.isdigit() and w.isdigit() else None
