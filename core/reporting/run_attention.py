"""The attention figure of a finished run: its model on the test images of unseen classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from core.datasets.attributes import read_attribute_names
from core.datasets.registry import CUB, CUB50, DATASETS, image_folder
from core.datasets.xlsa17 import Metadata
from core.features.extraction import load_image
from core.features.regions import RegionFeatures
from core.files.errors import UserError
from core.recipes import build, recipe_of
from core.reporting.attention import attention_figure, best_median_worst, margins_of, panel_of
from core.training.checkpoint import load_checkpoint
from core.training.evaluation import calibrated
from core.training.loop import class_scores, test_fold

_SIDE = 224  # pixels of a photograph in the figure


def _load(
    config: dict[str, Any], run_folder: Path, metadata: Metadata, w2v: np.ndarray, features: RegionFeatures
) -> tuple[Any, float]:
    """The trained model of a run and its γ."""
    tensors, record = load_checkpoint(run_folder / "checkpoint.safetensors")
    recipe = recipe_of(config["method"], config["dataset"])
    recipe = type(recipe)(**config["recipe"])
    fold = test_fold(metadata, w2v)
    model: Any = build(config["method"], recipe, fold, (features.R, features.D), 0, None, str(features.device)).model
    model.load_state_dict(tensors)
    model.eval()
    if not hasattr(model, "attention"):
        raise UserError(f"{config['method']} has no attention over regions to draw")
    return model, float(record["gamma"])


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
    model, _ = _load(config, run_folder, metadata, w2v, features)
    a = model.attention(features.batch(rows))
    return a.theta.cpu().numpy(), a.w.cpu().numpy()


@torch.no_grad()
def draw_attention(
    config: dict[str, Any],
    run_folder: Path,
    metadata: Metadata,
    w2v: np.ndarray,
    features: RegionFeatures,
    data_root: Path,
    out: Path,
    names: list[str] | None = None,
    grid: tuple[int, int] | None = None,
) -> None:
    """Draw the best, the median and the worst test image of the unseen classes.

    Args:
        names: K attribute names; read from the data set's own files where they are not given.
        grid: rows and columns of the feature map; None: a square.

    Raises:
        UserError: the method has no attention, the regions no such grid, or an image cannot be read.
    """
    model, gamma = _load(config, run_folder, metadata, w2v, features)
    dataset = DATASETS[config["dataset"]]
    folder = image_folder(data_root, CUB if dataset == CUB50 else dataset)
    if names is None:
        try:
            names = read_attribute_names(dataset, data_root)
        except UserError:  # a figure without names is better than none
            names = []
    names = [*names, *(f"attribute {k + 1}" for k in range(len(names), metadata.att.shape[1]))]
    rows = metadata.test_unseen_loc
    scores = calibrated(class_scores(model, features, rows), metadata.seen, metadata.unseen, gamma)
    labels, predicted = metadata.labels[rows], scores.argmax(axis=1)
    margins = margins_of(scores, labels)
    # vsmr prepares its class attributes, others normalise them; vsmr-staged has neither them nor attribute scores e
    z = model.z if hasattr(model, "z") else F.normalize(torch.as_tensor(metadata.att, device=features.device), dim=1)
    panels = []
    for says, i in best_median_worst(margins).items():
        path = folder / metadata.image_files[rows[i]]
        try:
            picture = load_image(path, _SIDE)
        except ValueError as error:
            raise UserError(f"{path} cannot be drawn: {error}") from error
        a = model.attention(features.batch(rows[i : i + 1]))
        shown = a.w[0] if a.e is None else a.w[0] * a.e[0]
        panels.append(
            panel_of(
                picture,
                theta=a.theta[0].float().cpu().numpy(),
                contributions=(shown * z[predicted[i]]).float().cpu().numpy(),
                names=names,
                true=metadata.class_names[labels[i]],
                predicted=metadata.class_names[predicted[i]],
                says=f"{says}, margin {margins[i]:+.2f}",
                grid=grid,
            )
        )
    title = f"{config['dataset']}, {config['method']}, test images of unseen classes"
    number = "w·e·z, what the attribute says for the predicted class where it is looked for"
    attention_figure(panels, out, title=title, number=number)
