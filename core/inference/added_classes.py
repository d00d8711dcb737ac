"""Classes by description alone on a trained run. Nothing is trained.

A class that is added gets from its attributes what every unseen class had from the start: its row of prepared
attributes (with the mean of the *seen* classes, as they were), its encoded prototype, its hubness.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from core.datasets.metadata import name_problem
from core.files.errors import UserError
from core.inference.trained import Trained, build_model
from core.method import ClassSpace, ZeroShotModel

if TYPE_CHECKING:
    import pandas as pd

_EQUAL = 1e-3  # to which lengths of rows count as one


def add_classes(trained: Trained, frame: pd.DataFrame) -> Trained:
    """The run with more unseen classes.

    Args:
        frame: a row a class; first column the name, the others the run's attributes in any order, in the unit of the
            run's own. Where all its rows have one length, as in xlsa17's files, any unit will do: rows are scaled.

    Raises:
        UserError: missing, unknown or twice-named columns, a name that exists, a value that is no number, a row of
            zeros, or a method that learns something of every class and so cannot take one from its description.
    """
    names, att = _rows(trained, frame)
    space = trained.space
    lengths = space.att.norm(dim=1)
    if float(lengths.max() - lengths.min()) <= _EQUAL * float(lengths.mean()):
        att = att / att.norm(dim=1, keepdim=True) * lengths.mean()
    C = len(trained.classes)
    more = torch.arange(C, C + len(names))
    space = ClassSpace(
        att=torch.cat([space.att, att.to(space.att.dtype)]),
        seen=space.seen,
        unseen=torch.cat([space.unseen, more]),
        w2v=space.w2v,
    )
    return replace(trained, space=space, classes=[*trained.classes, *names], added=_extended(trained, space, more))


def _rows(trained: Trained, frame: pd.DataFrame) -> tuple[list[str], Tensor]:
    """Names and attributes (A,K) of the frame's rows, columns in the run's order."""
    if len(frame.columns) < 1 or len(frame) == 0:
        raise UserError("no class to add: a row is needed for each, its name first, then its attributes")
    columns, wanted = [str(c).strip() for c in frame.columns[1:]], trained.attributes
    if twice := sorted({c for c in columns if columns.count(c) > 1}):
        raise UserError(f"the attributes {_some(twice)} have two columns each")
    missing, unknown = [a for a in wanted if a not in columns], [c for c in columns if c not in wanted]
    if missing or unknown:
        said = [f"{len(names)} {what} ({_some(names)})" for what, names in (("missing", missing), ("unknown", unknown))
                if names]  # fmt: skip
        raise UserError(
            f"the attributes are not those of the run, which has {len(wanted)}: {'; '.join(said)}. The first column "
            "names the class, each other one an attribute, in any order"
        )
    names = [str(name).strip() for name in frame.iloc[:, 0]]
    for i, name in enumerate(names):
        if why := name_problem(name):
            raise UserError(f"{name!r} is no class name: it {why}")
        if name in trained.classes or name in names[:i]:
            raise UserError(f"the class {name!r} exists already; choose another name")
    try:
        values = frame.iloc[:, [1 + columns.index(a) for a in wanted]].to_numpy(dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise UserError(f"attributes of the classes to add must be numbers ({error})") from error
    for c, k in np.argwhere(~np.isfinite(values))[:1]:
        raise UserError(f"class {names[c]!r}: no number for {wanted[k]!r}; every attribute needs one")
    for c in np.flatnonzero(~values.any(axis=1))[:1]:
        raise UserError(f"class {names[c]!r}: all attributes are 0, which describes nothing")
    return names, torch.from_numpy(values.copy(order="C"))


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _extended(trained: Trained, space: ClassSpace, more: Tensor) -> ZeroShotModel:
    """A copy of the model for a space with classes ``more`` (A,) at its end: what is learned is taken over."""
    model = build_model(trained.config, trained.recipe, space, trained.shape)
    before, C, C_all = (trained.added or trained.model).state_dict(), len(trained.classes), len(space.att)
    parameters = {name for name, _ in model.named_parameters()}
    state = {}
    for key, built in model.state_dict().items():
        old = before[key].to(built.device)
        if built.shape == old.shape:
            state[key] = old
        elif built.shape == (C_all, *old.shape[1:]) and len(old) == C and key not in parameters:
            state[key] = torch.cat([old, built[C:]])  # rows of classes
        elif key in parameters or built.shape[1:] != old.shape[1:]:
            raise UserError(
                f"{trained.config['method']} learns something of every class ({key}), so it cannot take one from its "
                "description; train again with the class among the unseen ones"
            )
        else:
            state[key] = built  # the list of unseen classes
    model.load_state_dict(state)
    model.eval().describe_classes(more)
    return model.to(trained.device)
