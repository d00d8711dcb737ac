"""The settings of an extraction, the name its file gets, and the command that makes it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from core.datasets.paths import feature_file
from core.datasets.registry import DataSet
from core.features.backbones import SAW_UNSEEN, file_form
from core.features.trunks import DEMO, OPEN_CLIP, TIMM, own_size
from core.features.weights import is_weights_file
from core.files.errors import UserError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
STORES = ("float16", "float32")
BATCH_SIZE = 32
FINETUNED = "finetuned_"  # how the weights files of finetune.py begin
_RANGES = {"batch_size": (1, 65536), "workers": (1, 1024), "input_size": (32, 4096), "pool": (1, 16)}
_CHOICES = {"dtype": tuple(DTYPES), "store": STORES, "pretraining_saw_unseen": SAW_UNSEEN}
# flags that OWN_ours.py has under another name, or has not
_OWN_FLAGS = {"out": "--features", "batch_size": "--image-batch-size", "layers": "", "flip": "", "store": ""}


@dataclass(frozen=True, kw_only=True)
class ExtractionConfig:
    """Everything that decides the features. The defaults are DAZLE's protocol: ResNet-101, 224 pixels, layer4.

    Raises:
        UserError: a value out of its range; names the flag.
    """

    backbone: str = "resnet101"  # torchvision classifier, timm:NAME, open_clip:MODEL/PRETRAINED, or demo
    weights: str | None = None  # None: IMAGENET1K_V1; timm: those its name says
    input_size: int | None = None  # image side in pixels; None: what the backbone was made for
    layers: tuple[str, ...] = ()  # earlier maps put behind the last one, averaged to its grid
    pool: int = 1  # average pool x pool regions into one
    flip: bool = False  # average the maps of both views
    dtype: str = "float32"  # arithmetic of the backbone
    store: str = "float16"  # type in the file
    device: str = "auto"
    batch_size: int = BATCH_SIZE  # images a forward pass
    workers: int | None = None  # decoding threads; None: one per core, 2 to 16
    pretraining_saw_unseen: str | None = None  # what a user says of own weights: no, unknown, yes

    def __post_init__(self) -> None:
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise UserError(f"--{name.replace('_', '-')} {value}: must be from {low} to {high}")
        for name, choices in _CHOICES.items():
            value = getattr(self, name)
            if value is not None and value not in choices:
                raise UserError(f"--{name.replace('_', '-')} {value}: choose one of {', '.join(choices)}")
        declared, weights = self.pretraining_saw_unseen, self.weights or ""
        if declared is not None and not is_weights_file(weights) and not self.backbone.startswith((TIMM, OPEN_CLIP)):
            raise UserError(
                "--pretraining-saw-unseen is for weights files, timm and open_clip; what torchvision's saw is known"
            )


def default_out(data_root: Path | str, dataset: DataSet, config: ExtractionConfig) -> Path:
    """<data_root>/<source>/feature_map_<Backbone>_<source>.hdf5; DAZLE's name where nothing differs from its protocol.

    What does is named: feature_map_ResNet_101_448px_layer3_pool2_flip_CUB.hdf5.
    """
    own = Path(config.weights or "").name
    fold = own.removeprefix(f"{FINETUNED}{file_form(config.backbone)}_").removesuffix(".safetensors")
    parts = [file_form(config.backbone)]
    parts += [f"finetuned_{fold}"] if own.startswith(FINETUNED) else []
    parts += [] if config.input_size in (None, own_size(config.backbone)) else [f"{config.input_size}px"]
    parts += config.layers
    parts += [f"pool{config.pool}"] if config.pool > 1 else []
    parts += ["flip"] if config.flip else []
    return feature_file(Path(data_root), dataset, "_".join(parts))


def extraction_command(
    dataset: DataSet, *, data_root: Path | str = "data", out: Path | str | None = None,
    config: ExtractionConfig | None = None,
) -> str:  # fmt: skip
    """The complete command of an extraction, what is at its default left out."""
    config = config or ExtractionConfig()
    root = [] if str(data_root) == "data" else ["--data-root", str(data_root)]
    if dataset.source == "DEMO":
        return shlex.join(["python", "DEMO_ours.py", *root])
    own = dataset.source == "OWN"
    script = "OWN_ours.py" if own else f"extract_feature/extract_feature_map_ResNet_101_{dataset.source}.py"
    words = ["python", script, *root]
    changed = [field.name for field in fields(config) if getattr(config, field.name) != field.default]
    given = {"out": out} | {name: getattr(config, name) for name in changed}
    for name, value in given.items():
        flag = _OWN_FLAGS.get(name) if own and name in _OWN_FLAGS else f"--{name.replace('_', '-')}"
        if flag and value is not None:
            value = ",".join(value) if isinstance(value, tuple) else value
            words += [flag] if value is True else [flag, str(value)]
    return shlex.join(words)


def recorded_config(provenance: Mapping[str, Any], store: str | None = None) -> ExtractionConfig:
    """The settings that a feature file records, for the command that makes it anew. A weights file is known by name.

    Args: store: the type of its features; None: the usual one.
    """
    have = {key: provenance[key] for key in ("backbone", "weights", "dtype", "batch_size") if key in provenance}
    have |= {} if store is None else {"store": store}
    size, backbone = provenance.get("input_size"), have.get("backbone", "resnet101")
    if size is not None and int(size) != own_size(backbone):
        have["input_size"] = int(size)
    if have.get("weights") in ("IMAGENET1K_V1", "pretrained"):
        del have["weights"]
    have["layers"] = tuple(str(provenance.get("layer", "")).split("+")[1:])
    have |= {"pool": int(provenance.get("pool", 1)), "flip": provenance.get("flip", "no") != "no"}
    if have.get("weights") and is_weights_file(str(have["weights"])) and "pretraining_saw_unseen" in provenance:
        saw = provenance["pretraining_saw_unseen"]
        have |= {"pretraining_saw_unseen": saw} if saw != "unknown" and backbone != DEMO else {}
    try:
        return ExtractionConfig(**have)
    except (UserError, TypeError):  # of a file from elsewhere
        return ExtractionConfig()
