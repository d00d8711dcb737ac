"""A finished run's model, from its checkpoint alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from core.files.errors import UserError
from core.method import ClassSpace, ZeroShotModel, find_method, with_settings
from core.training.checkpoint import load_checkpoint


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A model in evaluation mode, and what its checkpoint says of it."""

    model: ZeroShotModel
    space: ClassSpace
    gamma: float  # added to the scores of unseen classes
    classes: list[str]  # (C,)
    attributes: list[str]  # (K,)
    config: dict[str, Any]  # the run's identity


def load_trained(folder: Path, device: torch.device | str = "cpu") -> Trained:
    """The model of a finished run.

    Raises:
        UserError: no checkpoint there, or one that is damaged or of another version.
    """
    path = Path(folder) / "checkpoint.safetensors"
    tensors, meta = load_checkpoint(path)
    parts = {name: {k.removeprefix(f"{name}."): v for k, v in tensors.items() if k.startswith(f"{name}.")} for name in
             ("model", "space")}  # fmt: skip
    try:
        space = ClassSpace(**parts["space"])
        method = find_method(meta["config"]["method"])
        recipe = with_settings(method.recipe_type(), meta["recipe"])
        R, D = meta["shape"]
        model = method.build(recipe, space, (R, D), meta["config"]["seed"], meta["config"]["epochs"]).model
        model.load_state_dict(parts["model"])
    except (KeyError, TypeError, RuntimeError) as error:
        raise UserError(
            f"{path} was written by another version of this code ({type(error).__name__}: {error}); run it again"
        ) from error
    return Trained(
        model=model.to(device).eval(),
        space=space,
        gamma=float(meta["gamma"]),
        classes=meta["classes"],
        attributes=meta["attributes"],
        config=meta["config"],
    )
