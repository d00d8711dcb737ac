"""Where everything of a data set lies under a data root. Nothing outside the root is looked at."""

from collections.abc import Sequence
from pathlib import Path

from core.datasets.registry import DataSet
from core.files.errors import UserError
from core.files.tars import find_members

DEFAULT_ROOT = Path("data")  # below the working directory


def image_folder(data_root: Path, dataset: DataSet) -> Path:
    """The data set's own folder, which holds its images."""
    tried = [Path(data_root) / folder for folder in dataset.folders]
    for folder in filter(Path.is_dir, tried):
        return folder
    raise UserError(f"the images of {dataset.source} are not there. Looked for: {_places(tried, dataset)}")


def xlsa17_folder(data_root: Path, dataset: DataSet) -> Path:
    """The folder with the data set's res101.mat and att_splits.mat."""
    tried = [Path(data_root) / "xlsa17" / "data" / dataset.source, Path(data_root) / dataset.source]
    for folder in tried:
        if (folder / "att_splits.mat").is_file() and (folder / "res101.mat").is_file():
            return folder
    what = f"xlsa17's res101.mat and att_splits.mat of {dataset.source} are not there"
    raise UserError(f"{what}. Looked in: {_places(tried, dataset)}, or point --data-root at the folder of xlsa17/")


def feature_file(data_root: Path, dataset: DataSet, backbone: str = "ResNet_101") -> Path:
    """ROOT/<source>/feature_map_<Backbone>_<source>.hdf5, which is DAZLE's name for ResNet-101's features."""
    return Path(data_root) / dataset.source / f"feature_map_{backbone}_{dataset.source}.hdf5"


def vectors_file(data_root: Path, dataset: DataSet) -> Path:
    """The attributes' word vectors: in ROOT/w2v/, for the default root `data` in w2v/ beside it."""
    root = Path(data_root)
    folder = Path("w2v") if root.resolve() == DEFAULT_ROOT.resolve() else root / "w2v"
    return folder / f"{dataset.source}_attribute.pkl"


def resolve_images(folder: Path, names: Sequence[str]) -> tuple[list[Path], list[int]]:
    """Paths of the images, and which of ``names`` have none. SUN's lie below images/.

    What is no file is looked for in the tars of the folder, by its key.
    """
    if not (folder / names[0]).parent.is_dir() and (folder / "images" / names[0]).parent.is_dir():
        folder = folder / "images"
    paths = [folder / name for name in names]
    missing = [i for i, path in enumerate(paths) if not path.is_file()]
    in_tars = find_members(folder) if missing else {}  # else an archive that was unpacked there is in nobody's way
    for i in missing:
        paths[i] = in_tars.get(names[i].rpartition(".")[0], paths[i])
    return paths, [i for i in missing if paths[i] == folder / names[i]]


def _places(places: Sequence[Path], dataset: DataSet) -> str:
    page = "docs/own-data.md" if dataset.source == "OWN" else f"data/{dataset.source if dataset.counts else 'CUB'}.md"
    return f"{', '.join(map(str, places))}. See {page} for the layout and where to get it"
