"""Classes that come after training: described, shown by photographs, or both. Nothing is trained.

A class that is described gets from its attributes what every unseen class had from the start: its row of prepared
attributes (with the mean of the *seen* classes, as they were) and its hubness. One that n photographs show as well has
    p   = n/(n+k) m + k/(n+k) W z̃ / |W z̃|        m the unit mean of f of its photographs; without a description m alone
    s   = 100 cos(f, p) - 100 h max_s cos(M_s, p)  +  γ k/(n+k)
as prototype and score: attributes at places, and how like its photographs the image is, each by its share. k, the
photographs that a description is worth, and the share of γ were chosen on validation classes (docs/predict.md). The
run's own classes keep their scores to the bit, but for unseen ones that photographs are given of.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from core.datasets import words
from core.datasets.metadata import listed, name_problem
from core.datasets.own import find_images
from core.datasets.sheets import read_attributes
from core.files.errors import UserError
from core.inference.trained import Added, Trained
from core.preparation import ClassEncoder

log = logging.getLogger(__name__)
WORTH = 3  # k


def in_folder(path: Path) -> tuple[Path | None, dict[str, list[Path]]]:
    """The sheet and the photographs by class of --add-classes: a sheet, or a folder with one and images/."""
    if not path.is_dir():
        return path, {}
    sheets = [path / name for name in ("attributes.csv", "attributes.xlsx", words.NAME) if (path / name).is_file()]
    images = find_images(path)[0] if (path / "images").is_dir() else {}
    if not sheets and not images:
        raise UserError(f"--add-classes {path}: neither attributes.csv, {words.NAME} nor images/<class>/ is in it")
    photos = {name: [path / "images" / file for file in files] for name, files in images.items()}
    return sheets[0] if sheets else None, photos


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
    """
    shown, encoder, space = shown or {}, trained.encoder, trained.space
    if encoder is None:
        said = "cannot score a class from its description; train again with it among the unseen ones, or take vsmr"
        raise UserError(f"{trained.config['method']} {said}")
    told = {} if described is None else _described(trained.attributes, described)
    known = {trained.classes[c]: space.att[c] for c in space.unseen.tolist()}
    names = [*told, *(name for name in shown if name not in told)]
    for name in names:
        if name in trained.classes and (name in told or name not in known):
            raise UserError(f"the class {name!r} exists already; choose another name, or train again with more of it")
        if why := name_problem(name):
            raise UserError(f"{name!r} is no class name: it {why}")
    none = torch.zeros_like(space.att[0])
    att = torch.stack([told.get(name, known.get(name, none)).to(none) for name in names])  # (A,K)
    for name, row in zip(names, att, strict=True):
        by = ["description"] * bool(row.any()) + ([f"{len(shown[name])} photographs"] if name in shown else [])
        log.info("added: %s (%s)", name, " and ".join(by))
    classes = [*trained.classes, *(name for name in names if name not in known)]
    new = torch.tensor([name not in known for name in names])
    added = known_by(encoder, att.to(trained.device), [shown.get(name) for name in names])
    added = replace(added, numbers=[*map(classes.index, names)])
    space = replace(
        space,
        att=torch.cat([space.att, att[new]]),
        unseen=torch.cat([space.unseen, torch.arange(len(trained.classes), len(classes))]),
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


def _described(wanted: Sequence[str], described: pd.DataFrame | Path) -> dict[str, Tensor]:
    """Attributes (K,) of each class, in the run's order."""
    if isinstance(described, Path):
        of_words, where = described.name == words.NAME, str(described)
        sheet = words.read_words(described, wanted) if of_words else read_attributes(described)
        frame = pd.DataFrame(sheet.values, sheet.classes, sheet.attributes)
    else:
        frame, where = described.set_index(described.columns[0]), "the classes to add"
    found = {
        "missing": [name for name in wanted if name not in frame],
        "unknown": [name for name in frame if name not in wanted],
        "named twice": [*frame.columns[frame.columns.duplicated()], *frame.index[frame.index.duplicated()]],
    }
    if said := [f"{len(names)} {what} ({listed(names)})" for what, names in found.items() if names]:
        raise UserError(
            f"{where}: {'; '.join(said)}. The first column names the class, each other one an attribute of the run (it "
            f"has {len(wanted)}), in any order"
        )
    values = frame[[*wanted]].apply(pd.to_numeric, errors="coerce").to_numpy(np.float32)  # (A,K)
    for name in frame.index[~np.isfinite(values).all(axis=1) | ~values.any(axis=1)]:
        raise UserError(f"{where}: class {name!r} needs a number for every attribute, and not 0 for all of them")
    return dict(zip(map(str, frame.index), torch.from_numpy(values.copy()), strict=True))
