"""The data sets, as data: folders, published counts, and what differs from one to the next."""

from dataclasses import dataclass, replace

from core.files.errors import UserError

# The authors' CUB50 subset, by official CUB class number.
CUB50_SEEN = (
    *(1, 2, 3, 4, 5, 9, 10, 12, 13, 14, 16, 17, 18, 19, 20, 21, 28, 31, 36, 42, 47, 53, 56, 57, 58),
    *(63, 70, 73, 74, 75, 77, 81, 88, 92, 93, 96, 97, 99, 101, 108),
)
CUB50_UNSEEN = (110, 120, 121, 134, 138, 139, 141, 161, 182, 189)


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Published sizes: classes, attributes and images."""

    seen: int
    unseen: int
    attributes: int
    images: int
    trainval: int
    test_seen: int
    test_unseen: int


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """Where one data set lives under a data root, and what is published about it."""

    name: str
    source: str = ""  # the data set whose images, features and word vectors it uses; its own
    anchor: str  # folder in xlsa17's image paths from which they are resolved
    folders: tuple[str, ...] = ()  # where that folder may lie under the data root; <source>/<anchor> and <anchor>
    val_share: float = 1 / 3  # share of the seen classes held out for validation
    counts: Counts | None = None  # None: any size
    clip_negative: bool = False  # xlsa17's rule for the benchmarks: a negative attribute stands for a missing one, 0
    attribute_file: str = "attributes.txt"  # attribute names, below the anchor folder
    caveat: str = ""  # printed with every result

    def __post_init__(self) -> None:
        source = self.source or self.name
        object.__setattr__(self, "source", source)
        object.__setattr__(self, "folders", self.folders or (f"{source}/{self.anchor}", self.anchor))


DATASETS: dict[str, DataSet] = {}


def register(dataset: DataSet) -> DataSet:
    """Make a data set known by its name; returns it. The same one again, as from a notebook's cell, is no error."""
    if DATASETS.get(dataset.name, dataset) != dataset:
        raise UserError(f"another data set is named {dataset.name} already; choose another name")
    DATASETS[dataset.name] = dataset
    return dataset


AWA2 = DataSet(
    name="AWA2",
    anchor="Animals_with_Attributes2",
    val_share=13 / 40,
    counts=Counts(seen=40, unseen=10, attributes=85, images=37322, trainval=23527, test_seen=5882, test_unseen=7913),
    clip_negative=True,
    attribute_file="predicates.txt",
)
CUB = DataSet(
    name="CUB",
    anchor="CUB_200_2011",
    val_share=50 / 150,
    counts=Counts(seen=150, unseen=50, attributes=312, images=11788, trainval=7057, test_seen=1764, test_unseen=2967),
    clip_negative=True,
    attribute_file="attributes/attributes.txt",
)
CUB50 = replace(
    CUB,
    name="CUB50",
    val_share=10 / 40,
    counts=Counts(seen=40, unseen=10, attributes=312, images=2936, trainval=1938, test_seen=400, test_unseen=598),
)
SUN = DataSet(
    name="SUN",
    anchor="SUN",
    folders=("SUN",),
    val_share=65 / 645,
    counts=Counts(seen=645, unseen=72, attributes=102, images=14340, trainval=10320, test_seen=2580, test_unseen=1440),
    clip_negative=True,
    attribute_file="attributes.mat",
)
DEMO = DataSet(
    name="DEMO",
    anchor="DEMO_creatures",
    folders=("DEMO/DEMO_creatures",),
    val_share=0.25,
    caveat="the pictures are drawn: they show that the pipeline runs and are no evidence for a method on photographs "
    "(train and val classes are the split file's; those of seeds after 0 are not, and the backbone knows some of them)",
)
# a folder of one's own: core/datasets/own.py
OWN = DataSet(name="OWN", anchor="images", folders=("images",), attribute_file="attributes.csv")
for _dataset in (AWA2, CUB, CUB50, SUN, DEMO, OWN):
    register(_dataset)
