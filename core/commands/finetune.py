"""Command line of finetune.py."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from core.commands.parser import Parser, from_flags
from core.datasets.paths import image_folder, resolve_images
from core.datasets.registry import DATASETS
from core.datasets.xlsa17 import read_metadata
from core.features.backbones import file_form
from core.features.finetune import FinetuneConfig, finetune
from core.features.settings import FINETUNED, extraction_command
from core.fields import add_fields
from core.files.errors import UserError
from core.training.folds import validation_fold

_log = logging.getLogger(__name__)


def main(description: str | None = None, argv: Sequence[str] | None = None) -> int:
    parser = Parser(description)
    add = parser.add_argument
    add("dataset", choices=[*DATASETS], help="the data set whose seen classes are learned")
    said = "validation split K, for features that --seed K validates on and tests; or final: all of trainval (0)"
    add("--split", default="0", metavar="K", help=said)
    add_fields(parser, FinetuneConfig())
    add("--data-root", type=Path, default=Path("data"), help="holds the images and xlsa17/ (data)")
    a = parser.parse_args(argv)
    if a.split != "final" and not a.split.isdecimal():
        raise UserError(f"--split {a.split}: the number of a validation split (0, 1, ...), or final")
    dataset = DATASETS[a.dataset]
    metadata = read_metadata(a.data_root, dataset)
    paths, _ = resolve_images(image_folder(a.data_root, dataset), metadata.image_files)
    fold, rows = "final", metadata.trainval_loc
    if a.split != "final":
        no_vectors = np.zeros((metadata.att.shape[1], 1), np.float32)  # word vectors choose no image
        fold, rows = f"split{int(a.split)}_val", validation_fold(metadata, no_vectors, int(a.split)).train_rows
    fold = fold if dataset.name == dataset.source else f"{dataset.name}_{fold}"
    out = a.data_root / dataset.source / f"{FINETUNED}{file_form(a.backbone)}_{fold}.safetensors"
    config = from_flags(FinetuneConfig, a)
    finetune(dataset, metadata, rows, paths=paths, fold=fold, out=out, config=config)
    command = extraction_command(dataset, a.data_root, backbone=a.backbone, weights=out, input_size=a.input_size)
    _log.info("weights in %s; extract with:\n  %s", out, command)
    return 0
