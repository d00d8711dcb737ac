"""Figures of a trained model: where each attribute was looked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from PIL import Image

from core.datasets.attributes import read_attribute_names
from core.datasets.registry import CUB, CUB50, DATASETS, image_folder
from core.datasets.xlsa17 import Metadata
from core.features.regions import RegionFeatures
from core.files.atomic import atomic_path
from core.files.errors import UserError
from core.recipes import build, recipe_of
from core.training.checkpoint import load_checkpoint
from core.training.loop import test_fold


@torch.no_grad()
def attention_maps(
    config: dict[str, Any],
    run_folder: Path,
    metadata: Metadata,
    w2v: np.ndarray,
    features: RegionFeatures,
    rows: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """(θ (B,R,K), w (B,K)) of a finished run for the images in ``rows``."""
    tensors, _ = load_checkpoint(run_folder / "checkpoint.safetensors")
    recipe = recipe_of(config["method"], config["dataset"])
    recipe = type(recipe)(**config["recipe"])
    fold = test_fold(metadata, w2v)
    model: Any = build(config["method"], recipe, fold, (features.R, features.D), 0, None, str(features.device)).model
    model.load_state_dict(tensors)
    model.eval()
    if not hasattr(model, "attention"):
        raise UserError(f"{config['method']} has no attention over regions to draw")
    a = model.attention(features.batch(rows))
    return a.theta.cpu().numpy(), a.w.cpu().numpy()


def attention_figure(
    config: dict[str, Any],
    run_folder: Path,
    metadata: Metadata,
    w2v: np.ndarray,
    features: RegionFeatures,
    data_root: Path,
    out: Path,
    names: list[str] | None = None,
    images: int = 4,
    attributes: int = 6,
) -> None:
    """Draw test images of unseen classes, each with the attention of its class's most telling attributes.

    An attribute is telling where its class strength exceeds the mean over classes the most. ``names`` (K,) are read
    from the data set's own files where they are not given.
    """
    dataset = DATASETS[config["dataset"]]
    folder = image_folder(data_root, CUB if dataset == CUB50 else dataset)
    if names is None:
        try:
            names = read_attribute_names(dataset, data_root)
        except UserError:  # a figure without names is better than none
            names = [f"attribute {k + 1}" for k in range(metadata.att.shape[1])]
    classes = metadata.unseen[:: max(1, len(metadata.unseen) // images)][:images]
    rows = np.array([metadata.test_unseen_loc[metadata.labels[metadata.test_unseen_loc] == c][0] for c in classes])
    theta, w = attention_maps(config, run_folder, metadata, w2v, features, rows)
    side = round(theta.shape[1] ** 0.5)
    if side * side != theta.shape[1]:
        raise UserError(f"{theta.shape[1]} regions do not form a square")
    size = (len(rows) * 1.75 + 0.3, (attributes + 1) * 1.6)
    figure, axes = plt.subplots(len(rows), attributes + 1, figsize=(size[1] * 1.05, size[0]), squeeze=False)
    excess = metadata.att - metadata.att.mean(axis=0)
    for i, row in enumerate(rows):
        path = folder / metadata.image_files[row]
        if not path.is_file():
            raise UserError(f"no image at {path}")
        with Image.open(path) as opened:
            picture = opened.convert("RGB")
        short = min(picture.size)  # the centre square that the backbone saw
        left, top = (picture.width - short) // 2, (picture.height - short) // 2
        picture = picture.crop((left, top, left + short, top + short)).resize((224, 224))
        axes[i, 0].imshow(picture)
        axes[i, 0].set_title(metadata.class_names[classes[i]][:24], fontsize=7)
        for j, k in enumerate(np.argsort(-excess[classes[i]])[:attributes], start=1):
            heat = theta[i, :, k].reshape(side, side)
            axes[i, j].imshow(picture)
            axes[i, j].imshow(heat, cmap="jet", alpha=0.45, extent=(0, 224, 224, 0), interpolation="bilinear")
            axes[i, j].set_title(f"{names[k].removeprefix('has_')[:26]}\nw {w[i, k]:.2f}", fontsize=6)
    for axis in axes.ravel():
        axis.axis("off")
    _save(figure, out)


def calibration_figure(runs: dict[str, list[Path]], out: Path, title: str) -> None:
    """Seen against unseen accuracy as γ of calibrated stacking varies; one line per method (first seed).

    Args: method -> its run folders, each with the curve.csv that a run leaves.
    """
    figure, axis = plt.subplots(figsize=(5.2, 4.6))
    for method, folders in runs.items():
        curve = pd.read_csv(folders[0] / "curve.csv")
        wide = 2.2 if method == "vsmr" else 1.1
        axis.plot(100 * curve.U, 100 * curve.S, label=method, linewidth=wide, drawstyle="default")
    axis.set(xlabel="U, unseen classes (%)", ylabel="S, seen classes (%)", title=title, xlim=(0, 100), ylim=(0, 100))
    axis.legend(fontsize=7, loc="lower left")
    axis.grid(alpha=0.3)
    _save(figure, out)


def per_class_figure(runs: dict[str, list[Path]], out: Path, title: str, against: str) -> None:
    """Accuracy of each unseen class, mean over seeds: vsmr against another method, sorted by vsmr's."""
    tables = {m: pd.concat([pd.read_csv(f / "per_class.csv") for f in runs[m]]) for m in ("vsmr", against)}
    means = {m: t[t.side == "unseen"].groupby("class").accuracy.mean() for m, t in tables.items()}
    order = means["vsmr"].sort_values(ascending=False).index
    figure, axis = plt.subplots(figsize=(max(5.0, 0.24 * len(order) + 1.5), 4.2))
    at = np.arange(len(order))
    axis.bar(at, 100 * means["vsmr"][order], color="#4c72b0", label="vsmr")
    axis.plot(at, 100 * means[against][order], "o", color="#c44e52", markersize=4, label=against)
    axis.set_xticks(at, [str(n)[:24] for n in order], rotation=90, fontsize=6)
    axis.set(ylabel="accuracy among all classes (%)", title=title, ylim=(0, 100), xlim=(-0.7, len(order) - 0.3))
    axis.legend(fontsize=8)
    _save(figure, out)


def _save(figure: Any, out: Path) -> None:
    figure.tight_layout()
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(out) as temporary:
        figure.savefig(temporary, format="png", dpi=110, metadata={"Software": None})
    plt.close(figure)
