"""Where everything of a data set lies under a data root. Nothing outside the root is looked at."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

from core.datasets.registry import DataSet
from core.files.errors import UserError

DEFAULT_ROOT = Path("data")  # below the working directory


def image_folder(data_root: Path, dataset: DataSet) -> Path:
    """The data set's own folder, which holds its images.

    Raises:
        UserError: it is in none of the places we look; names them all.
    """
    for folder in (tried := _image_folders(data_root, dataset)):
        if folder.is_dir():
            return folder
    raise UserError(
        f"the images of {dataset.source} are not there. Looked for the folders: {_listed(tried)}. {_get(dataset)}"
    )


def xlsa17_folder(data_root: Path, dataset: DataSet) -> Path:
    """The folder with the data set's res101.mat and att_splits.mat.

    Raises:
        UserError: they are in none of the places we look; names them all.
    """
    for folder in (tried := _xlsa17_folders(data_root, dataset)):
        if (folder / "att_splits.mat").is_file() and (folder / "res101.mat").is_file():
            return folder
    raise UserError(
        f"xlsa17's res101.mat and att_splits.mat of {dataset.source} are not there. Looked in: {_listed(tried)}. "
        f"{_get(dataset)}, or point --data-root at the folder that holds xlsa17/"
    )


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
    images, splits = _image_folders(data_root, dataset), _xlsa17_folders(data_root, dataset)
    there = any(f.is_dir() for f in images) or any((f / "att_splits.mat").is_file() for f in splits)
    features = feature_file(data_root, dataset, "*")
    if not there and not any(features.parent.glob(features.name)):
        looked = _listed([*images, *(f / "att_splits.mat" for f in splits), features])
        root = f"{data_root}{'' if data_root.is_dir() else ' (which is no folder)'}"
        raise UserError(f"--data-root {root} holds no {dataset.source}. Looked for: {looked}. {_get(dataset)}")


def resolve_images(folder: Path, names: Sequence[str]) -> tuple[list[Path], list[int]]:
    """Paths of the images, and which of ``names`` have none. SUN's lie below images/; .JPG is found as .jpg.

    A name in other letters' case counts only where one file alone has it.
    """
    if not (folder / names[0]).parent.is_dir() and (folder / "images" / names[0]).parent.is_dir():
        folder = folder / "images"

    @cache
    def by_lower(parent: Path) -> dict[str, list[Path]]:
        found: dict[str, list[Path]] = {}
        for path in sorted(parent.iterdir()) if parent.is_dir() else ():
            found.setdefault(path.name.lower(), []).append(path)
        return found

    paths, missing = [folder / name for name in names], []
    for i, path in enumerate(paths):
        if not path.is_file():
            alike = by_lower(path.parent).get(path.name.lower(), [])
            if len(alike) == 1:
                paths[i] = alike[0]
            else:
                missing.append(i)
    return paths, missing


def _image_folders(data_root: Path, dataset: DataSet) -> list[Path]:
    return [Path(data_root) / folder for folder in dataset.folders]


def _xlsa17_folders(data_root: Path, dataset: DataSet) -> list[Path]:
    return [Path(data_root) / "xlsa17" / "data" / dataset.source, Path(data_root) / dataset.source]


def _listed(paths: Sequence[Path]) -> str:
    return ", ".join(map(str, paths))


def _get(dataset: DataSet) -> str:
    if dataset.source == "OWN":
        return "docs/own-data.md shows how a folder of one's own is laid out"
    if dataset.counts is None:
        return "data/CUB.md shows how a data set is laid out"
    return f"See data/{dataset.source}.md for where to get them and where to unpack them"
