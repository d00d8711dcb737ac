"""The data sets, as data: folders, published counts, and what differs from one to the next."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from core.files.errors import UserError

# The authors' CUB50 subset, by official CUB class number.
# fmt: off
CUB50_SEEN = (
    1, 2, 3, 4, 5, 9, 10, 12, 13, 14, 16, 17, 18, 19, 20, 21, 28, 31, 36, 42, 47, 53, 56, 57, 58,
    63, 70, 73, 74, 75, 77, 81, 88, 92, 93, 96, 97, 99, 101, 108,
)
# fmt: on
CUB50_UNSEEN = (110, 120, 121, 134, 138, 139, 141, 161, 182, 189)


@dataclass(frozen=True)
class Counts:
    """Published sizes: classes, attributes and images (the table in README.md)."""

    seen: int
    unseen: int
    attributes: int
    images: int
    trainval: int
    test_seen: int
    test_unseen: int


@dataclass(frozen=True)
class DataSet:
    """Where one data set lives under a data root and what it must contain."""

    name: str
    source: str  # the data set whose images, features and word vectors it uses
    anchor: str  # folder in xlsa17's image paths from which they are resolved
    folders: tuple[str, ...]  # where that folder may lie under the data root
    val_share: float  # share of the seen classes that xlsa17 holds out for validation
    counts: Counts | None  # None: any size (the demo, a person's own data)
    attribute_file: str  # attribute names, below the anchor folder
    caveat: str = ""  # printed with every result

    def feature_file(self, backbone: str = "ResNet_101") -> str:
        """Name of the feature file; DAZLE's name for ResNet-101."""
        return f"feature_map_{backbone}_{self.source}.hdf5"


AWA2 = DataSet(
    "AWA2",
    "AWA2",
    "Animals_with_Attributes2",
    ("AWA2/Animals_with_Attributes2", "Animals_with_Attributes2"),
    13 / 40,
    Counts(40, 10, 85, 37322, 23527, 5882, 7913),
    "predicates.txt",
)
CUB = DataSet(
    "CUB",
    "CUB",
    "CUB_200_2011",
    ("CUB/CUB_200_2011", "CUB_200_2011"),
    50 / 150,
    Counts(150, 50, 312, 11788, 7057, 1764, 2967),
    "attributes/attributes.txt",
)
CUB50 = DataSet(
    "CUB50", "CUB", CUB.anchor, CUB.folders, 10 / 40, Counts(40, 10, 312, 2936, 1938, 400, 598), CUB.attribute_file
)
SUN = DataSet("SUN", "SUN", "SUN", ("SUN",), 65 / 645, Counts(645, 72, 102, 14340, 10320, 2580, 1440), "attributes.mat")
DEMO = DataSet(
    "DEMO",
    "DEMO",
    "DEMO_creatures",
    ("DEMO/DEMO_creatures",),
    0.25,
    None,
    "attributes.txt",
    "the demo shows that the pipeline runs, it is no evidence for a method: the training length of its backbone was "
    "settled while looking at accuracy on its unseen TEST classes, and the backbone knows the validation classes",
)

DATASETS = {d.name: d for d in (AWA2, CUB, CUB50, SUN, DEMO)}


def image_folder(data_root: Path, dataset: DataSet) -> Path:
    """The data set's own folder under ``data_root``.

    Raises:
        UserError: it is in none of the places we look; names them all.
    """
    tried = [data_root / folder for folder in dataset.folders]
    for folder in tried:
        if folder.is_dir():
            return folder
    raise UserError(
        f"the images of {dataset.source} are not there. Looked for the folders: "
        + ", ".join(str(t) for t in tried)
        + f". See data/{dataset.source}.md for where to get them and where to unpack them."
    )
