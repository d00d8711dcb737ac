"""Where everything of a data set lies under a data root. Nothing outside the root is looked at."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

from core.datasets.registry import DataSet
from core.files.errors import UserError

DEFAULT_ROOT = Path("data")  # below the working directory


def image_folder(data_root: Path, dataset: DataSet) -> Path:
    """The data set's own folder, which holds its images."""
    tried = [Path(data_root) / folder for folder in dataset.folders]
    for folder in tried:
        if folder.is_dir():
            return folder
    looked = ", ".join(map(str, tried))
    raise UserError(f"the images of {dataset.source} are not there. Looked for the folders: {looked}. {_get(dataset)}")


def xlsa17_folder(data_root: Path, dataset: DataSet) -> Path:
    """The folder with the data set's res101.mat and att_splits.mat."""
    for folder in (tried := _xlsa17_folders(data_root, dataset)):
        if (folder / "att_splits.mat").is_file() and (folder / "res101.mat").is_file():
            return folder
    raise UserError(
        f"xlsa17's res101.mat and att_splits.mat of {dataset.source} are not there. "
        f"Looked in: {', '.join(map(str, tried))}. {_get(dataset)}, or point --data-root at the folder of xlsa17/"
    )


def _xlsa17_folders(data_root: Path, dataset: DataSet) -> list[Path]:
    return [Path(data_root) / "xlsa17" / "data" / dataset.source, Path(data_root) / dataset.source]


def feature_file(data_root: Path, dataset: DataSet, backbone: str = "ResNet_101") -> Path:
    """ROOT/<source>/feature_map_<Backbone>_<source>.hdf5, which is DAZLE's name for ResNet-101's features."""
    return Path(data_root) / dataset.source / f"feature_map_{backbone}_{dataset.source}.hdf5"


def vectors_file(data_root: Path, dataset: DataSet) -> Path:
    """The attributes' word vectors: in ROOT/w2v/, for the default root `data` in w2v/ beside it."""
    root = Path(data_root)
    folder = Path("w2v") if root.resolve() == DEFAULT_ROOT.resolve() else root / "w2v"
    return folder / f"{dataset.source}_attribute.pkl"


def require(data_root: Path, dataset: DataSet) -> None:
    """Raise unless the root holds something of the data set: images, split files or features."""
    features = feature_file(data_root, dataset, "*")
    looked = [Path(data_root) / folder for folder in dataset.folders]
    looked += [folder / "att_splits.mat" for folder in _xlsa17_folders(data_root, dataset)]
    if not any(path.exists() for path in looked) and not any(features.parent.glob(features.name)):
        places = ", ".join(map(str, [*looked, features]))
        raise UserError(f"--data-root {data_root} holds no {dataset.source}. Looked for: {places}. {_get(dataset)}")


def resolve_images(folder: Path, names: Sequence[str]) -> tuple[list[Path], list[int]]:
    """Paths of the images, and which of ``names`` have none. SUN's lie below images/; .JPG is found as .jpg.

    A name in other letters' case counts only where one file alone has it.
    """
    if not (folder / names[0]).parent.is_dir() and (folder / "images" / names[0]).parent.is_dir():
        folder = folder / "images"

    @cache
    def files_of(parent: Path) -> list[Path]:
        return list(parent.iterdir()) if parent.is_dir() else []

    paths, missing = [folder / name for name in names], []
    for i, path in enumerate(paths):
        if not path.is_file():
            alike = [other for other in files_of(path.parent) if other.name.lower() == path.name.lower()]
            if len(alike) == 1:
                paths[i] = alike[0]
            else:
                missing.append(i)
    return paths, missing


def _get(dataset: DataSet) -> str:
    if dataset.source == "OWN":
        return "docs/own-data.md shows how a folder of one's own is laid out"
    if dataset.counts is None:
        return "data/CUB.md shows how a data set is laid out"
    return f"See data/{dataset.source}.md for where to get them and where to unpack them"
