"""The settings of an extraction, the name its file gets, and the command that makes it."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from core.datasets.paths import feature_file
from core.datasets.registry import DataSet
from core.features.backbones import SAW_UNSEEN, file_form
from core.features.devices import NAMES
from core.features.trunks import OPEN_CLIP, TIMM
from core.features.weights import is_weights_file
from core.fields import check, flag_of, hp
from core.files.errors import UserError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
STORES = ("float16", "float32")
BATCH_SIZE = 32
FINETUNED = "finetuned_"  # how the weights files of finetune.py begin


@dataclass(frozen=True, kw_only=True)
class ExtractionConfig:
    """Everything that decides the features. The defaults are DAZLE's protocol: ResNet-101, 224 pixels, layer4."""

    backbone: str = hp("resnet101", "torchvision classifier, timm:NAME, open_clip:MODEL/PRETRAINED, or demo")
    weights: str | None = hp(None, "torchvision weights name, a weights file, or random; none: those of the name")
    input_size: int | None = hp(None, "image side in pixels; none: the backbone's own", at_least=32, at_most=4096)
    pool: int = hp(1, "average this many by this many regions into one", at_least=1, at_most=16)
    dtype: str = hp("float32", "arithmetic of the backbone", choices=tuple(DTYPES))
    store: str = hp("float16", "type in the file", choices=STORES)
    device: str = hp("auto", NAMES)
    batch_size: int = hp(BATCH_SIZE, "images per forward pass", at_least=1, at_most=65536)
    workers: int | None = hp(None, "decoding threads; none: one per core, 2 to 16", at_least=1, at_most=1024)
    pretraining_saw_unseen: str | None = hp(None, "of weights files and timm; none: unknown", choices=SAW_UNSEEN)

    def __post_init__(self) -> None:
        check(self)
        declared, weights = self.pretraining_saw_unseen, self.weights or ""
        if declared is not None and not is_weights_file(weights) and not self.backbone.startswith((TIMM, OPEN_CLIP)):
            raise UserError("--pretraining-saw-unseen is of weights files, timm and open_clip: torchvision's is known")


def default_out(data_root: Path, dataset: DataSet, config: ExtractionConfig) -> Path:
    """<data_root>/<source>/feature_map_<Backbone>_<source>.hdf5, where what is not DAZLE's protocol is named."""
    own = Path(config.weights or "").name
    fold = own.removeprefix(f"{FINETUNED}{file_form(config.backbone)}_").removesuffix(".safetensors")
    parts = [file_form(config.backbone)]
    parts += [f"finetuned_{fold}"] if own.startswith(FINETUNED) else []
    parts += [f"{config.input_size}px"] if config.input_size else []
    parts += [f"pool{config.pool}"] if config.pool > 1 else []
    return feature_file(data_root, dataset, "_".join(parts))


def extraction_command(dataset: DataSet, data_root: Path | str, **flags: Any) -> str:
    """The complete command of an extraction with the flags that are given."""
    own = {"DEMO": "DEMO_ours.py", "OWN": "OWN_ours.py"}
    words = ["python", own.get(dataset.source, f"extract_feature/extract_feature_map_ResNet_101_{dataset.source}.py")]
    for name, value in {"data_root": data_root, **flags}.items():
        words += [] if str(value) in ("data", "None") else [flag_of(name), str(value)]
    return shlex.join(words)
