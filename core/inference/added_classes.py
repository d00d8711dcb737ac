"""Classes that come after training: described, shown by photographs, or both. Nothing is trained.

A class that is described gets from its attributes what every unseen class had from the start: its row of prepared
attributes (with the mean of the *seen* classes, as they were) and its hubness. One that n photographs show as well has
    p   = n/(n+k) m + k/(n+k) W z̃ / |W z̃|        m the unit mean of f of its photographs; without a description m alone
    s   = 100 cos(f, p) - 100 h max_s cos(M_s, p)  +  γ k/(n+k)
as prototype and score: attributes at places, and how like its photographs the image is, each by its share. k, the
photographs that a description is worth, and the share of γ were chosen on validation classes (docs/predict.md). The
run's own classes keep their scores to the bit, but for unseen ones that photographs are given of.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from core.datasets.metadata import name_problem
from core.datasets.own import find_images
from core.datasets.sheets import read_attributes
from core.files.errors import UserError
from core.inference.trained import Added, Trained
from core.preparation import ClassEncoder

log = logging.getLogger(__name__)
WORTH = 3  # k


def in_folder(path: Path) -> tuple[Path | None, dict[str, list[Path]]]:
    """The sheet and the photographs by class of --add-classes: a CSV file, or a folder with attributes.csv, images/."""
    if not path.is_dir():
        return path, {}
    sheet, photos = path / "attributes.csv", dict[str, list[Path]]()
    if not (path / "images").is_dir() and not sheet.is_file():
        raise UserError(f"--add-classes {path}: neither attributes.csv nor images/<class>/ is in it")
    if (path / "images").is_dir():
        photos = {name: [path / "images" / file for file in files] for name, files in find_images(path)[0].items()}
    return sheet if sheet.is_file() else None, photos


@torch.no_grad()
def add_classes(
    trained: Trained, described: pd.DataFrame | Path | None, shown: Mapping[str, Tensor] | None = None
) -> Trained:
    """The run with more unseen classes.

    Args:
        described: a CSV file or its frame, a row a class; first column the name, the others the run's attributes in any
            order. Any unit will do: what counts is proportions within a row.
        shown: by class the likeness (n,d) of its photographs (core/method.py). It may have no row in ``described``, and
            may be an unseen class of the run, whose description then counts.

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
            return add_classes(trained, frame, shown)
        except UserError as error:
            raise UserError(f"{described}: {error}") from error
    shown, encoder, space = shown or {}, trained.encoder, trained.space
    names, att = _rows(trained, described) if described is not None else ([], space.att[:0])
    if encoder is None:
        raise UserError(
            f"{trained.config['method']} cannot score a class from its description: its scores do not split over "
            "attributes; train again with the class among the unseen ones, or take vsmr"
        )
    known = {trained.classes[c]: space.att[c] for c in space.unseen.tolist()}
    for name in [name for name in shown if name not in names]:
        if name in trained.classes and name not in known:
            raise UserError(f"the class {name!r} has training photographs: put more into its folder, and train again")
        if why := name_problem(name):
            raise UserError(f"{name!r} is no class name: it {why}")
        names, att = [*names, name], torch.cat([att, known.get(name, 0 * space.att[0])[None].to(att)])
    said = [_said(name, row, shown.get(name)) for name, row in zip(names, att, strict=True)]
    log.info("added: %s", _some(said))
    classes = [*trained.classes, *(name for name in names if name not in known)]
    new = torch.tensor([name not in known for name in names])
    added = known_by(encoder, att.to(trained.device), [shown.get(name) for name in names])
    added = replace(added, numbers=[*map(classes.index, names)])
    C = len(trained.classes)
    space = replace(
        space,
        att=torch.cat([space.att, att[new].to(space.att)]),
        unseen=torch.cat([space.unseen, torch.arange(C, len(classes))]),
        text=None,
    )
    return replace(trained, space=space, classes=classes, added=(*trained.added, added))


def known_by(encoder: ClassEncoder, att: Tensor, shown: Sequence[Tensor | None], k: float = WORTH) -> Added:
    """What classes score by; descriptions att (A,K), all 0 where there is none, likeness (n,d) of photographs."""
    weights, correction = encoder.encode(att)
    gamma, likeness = torch.ones(len(att)), None
    if any(photos is not None for photos in shown):
        assert encoder.W is not None and encoder.means is not None
        likeness = encoder.W.new_zeros(len(att), encoder.W.shape[1])
        for c, photos in enumerate(shown):
            if photos is None:
                continue
            n = len(photos)
            share = n / (n + k) if att[c].any() else 1.0
            mean = share * F.normalize(photos.mean(dim=0), dim=0)
            prototype = mean + (1 - share) * weights[c] @ encoder.W  # (d,)
            length = prototype.norm()
            likeness[c], weights[c] = mean / length, (1 - share) / length * weights[c]
            correction[c] = -encoder.hubness * (encoder.means @ prototype / length).max()
            gamma[c] = k / (n + k)
    return Added(weights=weights, correction=correction, likeness=likeness, gamma=gamma)


def _said(name: str, row: Tensor, photos: Tensor | None) -> str:
    by = ["description"] * bool(row.any()) + ([] if photos is None else [f"{len(photos)} photographs"])
    return f"{name} ({' and '.join(by)})"


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
