"""Classes by description alone on a trained run. Nothing is trained.

A class that is added gets from its attributes what every unseen class had from the start: its row of prepared
attributes (with the mean of the *seen* classes, as they were) and its hubness. The run's own classes keep their scores
to the bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from core.datasets.metadata import name_problem
from core.datasets.sheets import read_attributes
from core.files.errors import UserError
from core.inference.trained import Trained


@torch.no_grad()
def add_classes(trained: Trained, described: pd.DataFrame | Path) -> Trained:
    """The run with more unseen classes.

    Args:
        described: a CSV file or its frame, a row a class; first column the name, the others the run's attributes in any
            order. Any unit will do: what counts is proportions within a row.

    Raises:
        UserError: missing, unknown or twice-named columns, a name that exists, a value that is no number, a row of
            zeros, or a method whose scores do not split over attributes.
    """
    if isinstance(described, Path):
        if not described.is_file():
            raise UserError(f"--add-classes {described}: there is no such file")
        sheet = read_attributes(described)
        frame = pd.DataFrame(sheet.values, columns=sheet.attributes)
        frame.insert(0, "class", sheet.classes, allow_duplicates=True)
        try:
            return add_classes(trained, frame)
        except UserError as error:
            raise UserError(f"{described}: {error}") from error
    names, att = _rows(trained, described)
    encoder, space, C = trained.encoder, trained.space, len(trained.classes)
    if encoder is None:
        raise UserError(
            f"{trained.config['method']} cannot score a class from its description: its scores do not split over "
            "attributes; train again with the class among the unseen ones, or take vsmr"
        )
    added = encoder.encode(att.to(trained.device))
    if trained.added is not None:
        added = torch.cat([trained.added[0], added[0]]), torch.cat([trained.added[1], added[1]])
    space = replace(
        space,
        att=torch.cat([space.att, att.to(space.att)]),
        unseen=torch.cat([space.unseen, torch.arange(C, C + len(names))]),
        text=None,
    )
    return replace(trained, space=space, classes=[*trained.classes, *names], added=added)


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
