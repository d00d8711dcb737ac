"""Attribute names: their files, and the words they consist of.

tests/test_attributes.py proves from the published vectors' numbers which words are in their sums: no "has", no sizes in
parentheses, hyphens split, "grey" spelled "gray".
"""

import re
from collections.abc import Sequence
from pathlib import Path

from core.datasets.paths import image_folder
from core.datasets.registry import DataSet
from core.files.errors import UserError
from core.files.kinds import unreadable
from core.files.matfile import read_mat

# Always rewritten; the left forms are not English words, or the other data sets spell them as on the right.
# fmt: off
_RESPELLED = {
    "grey": "gray", "quadrapedal": "quadrupedal", "newworld": "new world", "oldworld": "old world",
    "nestspot": "nest spot", "toughskin": "tough skin", "longleg": "long leg", "chewteeth": "chew teeth",
    "meatteeth": "meat teeth", "strainteeth": "strain teeth",
}
# Rewritten only where the vocabulary lacks the word; among the published vectors upperparts and
# spatulate were rewritten, longneck, buckteeth, flys and underparts were not.
FALLBACK = {
    "longneck": "long neck", "buckteeth": "buck teeth", "flys": "flies", "upperparts": "upper parts",
    "underparts": "under parts", "eyering": "eye ring", "eyeline": "eye line", "spatulate": "broad",
    "multicolored": "multi colored",
}
# fmt: on


def clean_name(name: str) -> list[str]:
    """Words of an attribute name: ``has_bill_shape::curved_(up_or_down)`` -> bill, shape, curved."""
    text = re.sub(r"\([^)]*\)", " ", name.lower())
    words = [w for w in re.split(r"[\W_]+", text) if w]
    if "::" in name and words[:1] == ["has"]:
        words = words[1:]
    return [w for word in words for w in _RESPELLED.get(word, word).split()]


def words_of(names: Sequence[str]) -> list[str]:
    """Every word that the names' vectors may be summed from, sorted."""
    words = {word for name in names for word in clean_name(name)}
    return sorted(words | {part for word in words for part in FALLBACK.get(word, word).split()})


def read_names_file(path: Path | str) -> list[str]:
    """Attribute names in file order from ``1 name`` lines (AWA2, CUB, DEMO) or SUN's attributes.mat."""
    path = Path(path)
    try:
        if path.suffix == ".mat":
            return [str(cell).strip() for cell in read_mat(path, ["attributes"])["attributes"]]
        rows = [line.split(maxsplit=1) for line in path.read_text("utf-8").splitlines() if line.strip()]
        if [row[0] for row in rows] != [str(k) for k in range(1, len(rows) + 1)]:
            raise ValueError("its lines are not `1 name`, `2 name`, `3 name`, ...")
        return [row[1].strip() for row in rows]
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise unreadable(path, "list of attribute names", error) from error


def read_attribute_names(dataset: DataSet, data_root: Path) -> list[str]:
    """Attribute names (K,) in the order of the columns of xlsa17's ``att``.

    Their file lies below the images, or beside their folder (as in CUB's archive).
    """
    folder, relative = image_folder(data_root, dataset), Path(dataset.attribute_file)
    tried = [folder / relative, folder.parent / relative.name]
    for path in filter(Path.is_file, tried):
        return read_names_file(path)
    looked = f"Looked for {', '.join(map(str, tried))}"
    raise UserError(f"no attribute names of {dataset.source}. {looked}. Name the file with --attributes PATH")
