"""The attention figure of a finished run: its model on the test images of unseen classes."""

from __future__ import annotations

from pathlib import Path

import torch

from core.datasets.paths import image_folder, resolve_images
from core.datasets.registry import DATASETS
from core.experiments.inputs import Inputs
from core.features.images import load_image
from core.files.errors import UserError
from core.inference.trained import grid_said, load_trained
from core.reporting.attention import attention_figure, best_median_worst, margins_of, panel_of
from core.training.evaluation import calibrated
from core.training.loop import class_scores

_SIDE = 224  # pixels of a photograph in the figure


@torch.no_grad()
def draw_attention(run_folder: Path, inputs: Inputs, data_root: Path, out: Path) -> None:
    """Draw the best, the median and the worst test image of the unseen classes.

    Raises:
        UserError: the method has no attention, the images are not there, or one cannot be read.
    """
    metadata, features = inputs.metadata, inputs.features
    trained = load_trained(run_folder, features.device)
    model = trained.model
    folder = image_folder(data_root, DATASETS[inputs.dataset])
    rows = metadata.test_unseen_loc
    sides = (trained.space.seen.cpu().numpy(), trained.space.unseen.cpu().numpy())
    scores = calibrated(class_scores(model, features, rows), *sides, trained.gamma)
    labels, predicted = metadata.labels[rows], scores.argmax(axis=1)
    margins = margins_of(scores, labels)
    z = getattr(model, "z", trained.space.z.to(features.device))  # (C,K), as the model takes class attributes
    panels = []
    for says, i in best_median_worst(margins).items():
        (path,), _ = resolve_images(folder, [metadata.image_files[rows[i]]])
        try:
            picture = load_image(path, _SIDE)
        except ValueError as error:
            raise UserError(f"{path} cannot be drawn: {error}") from error
        a = model.attend(features.batch(rows[i : i + 1]))
        if a is None:
            raise UserError(f"{trained.config['method']} has no attention over regions to draw")
        shown = a.w[0] if a.e is None else a.w[0] * a.e[0]
        panels.append(
            panel_of(
                picture,
                theta=a.theta[0].float().cpu().numpy(),
                contributions=(shown * z[predicted[i]]).float().cpu().numpy(),
                names=inputs.attribute_names,
                true=metadata.class_names[labels[i]],
                predicted=metadata.class_names[predicted[i]],
                says=f"{says}, margin {margins[i]:+.2f}",
                grid=grid_said(inputs.provenance["regions"]),
            )
        )
    title = f"{inputs.dataset}, {trained.config['method']}, test images of unseen classes"
    number = "w·e·z, what the attribute says for the predicted class where it is looked for"
    attention_figure(panels, out, title=title, number=number)
