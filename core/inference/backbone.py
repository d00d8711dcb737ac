"""The backbone that made a run's regions, made again from what the run's checkpoint records of it.

B images · R regions · D channels
"""

import threading
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from core.features.backbones import Backbone, build_backbone
from core.features.extraction import decoded, threads_of
from core.features.images import Normaliser, Picture
from core.features.regions import unit_regions
from core.features.settings import DTYPES, ExtractionConfig
from core.features.weights import is_weights_file, state_sha256
from core.files.errors import UserError

_SAME = ("backbone", "layer", "transform", "input_size", "pool", "flip")  # of the record, beside the weights
_MISSING = {"pool": 1, "flip": "no"}  # where a record is of before there was such a choice
_UNASKED = ("", "IMAGENET1K_V1", "pretrained", "package")  # weights that a library takes where none are named


def recorded_settings(
    record: Mapping[str, Any], run: Path, weights: Path | str | None, **more: Any
) -> ExtractionConfig:
    """How the regions of ``run`` were extracted, from its checkpoint, which has numbers as text.

    Args: weights: a file that a user names; None: the library has those of the recorded name. more: other fields.
    """
    name = str(record.get("backbone", "unknown"))
    if name == "unknown":
        raise UserError(
            f"the features that {run} was trained on do not say which backbone made them; extract them anew "
            "(extract_feature/), train again, and predict from that"
        )
    known, side = str(record.get("weights", "")), record.get("input_size")
    # a file is to be named again, and open_clip's weights are part of the backbone's name
    if weights is None and not (known in _UNASKED or is_weights_file(known) or name.endswith(f"/{known}")):
        weights = known
    return ExtractionConfig(
        backbone=name, weights=None if weights is None else str(weights), input_size=side and int(side),
        pool=int(record.get("pool", 1)), dtype=str(record.get("dtype", "float32")), **more,
    )  # fmt: skip


def rebuild(record: Mapping[str, Any], config: ExtractionConfig) -> Backbone:
    """The backbone of a record; refused where its weights are others, or where it is not made here as it was."""
    recorded, digest = str(record.get("weights", "")), str(record.get("weights_sha256", ""))
    if is_weights_file(recorded) and config.weights is None:
        raise UserError(
            f"this run's regions come from {record['backbone']} with the weights file {recorded} (sha256 {digest}), "
            "which is not here; name it with --weights FILE"
        )
    network = build_backbone(config.backbone, config.weights, input_size=config.input_size, pool=config.pool)
    if digest not in (network.sha256, state_sha256(network.network)):
        raise UserError(
            f"the weights of {config.backbone} are not those of this run: their sha256 is {network.sha256}, recorded "
            f"is {digest} ({recorded}); name the right file with --weights"
        )
    made = network.record()
    for key in _SAME:
        if str(made[key]) != str(record.get(key, _MISSING.get(key))):
            raise UserError(
                f"{config.backbone} has the {key} {made[key]} here, and had {record.get(key)} when this run's features "
                "were made; install the versions it was made with, or extract and train again"
            )
    return network


class View:
    """What one backbone makes of photographs; it is built when the first comes, and threads may share it."""

    def __init__(self, record: Mapping[str, Any], config: ExtractionConfig, device: torch.device) -> None:
        self.record, self.config, self.device, self.dtype = record, config, device, DTYPES[config.dtype]
        self._network: Backbone | None = None
        self._building = threading.Lock()

    @property
    def network(self) -> Backbone:
        """The backbone, on the device; refused where its weights did not make the training images' regions."""
        with self._building:
            if self._network is None:
                network = rebuild(self.record, self.config)
                network.to(self.device, self.dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
                self._network = network
            return self._network

    @torch.inference_mode()
    def regions(self, pixels: Tensor) -> Tensor:
        """(B,R,D) float32 regions of unit length, from pixels (B,H,W,3) uint8 that were resized and cropped."""
        images = Normaliser(self.device, self.dtype, self.network.transform)(pixels)
        maps = self.network(images).to(getattr(torch, self.record["store"]))
        return unit_regions(maps.flatten(2))[0].float()

    def batches(self, images: Sequence[Picture]) -> Generator[tuple[np.ndarray, Tensor, dict[int, str]]]:
        """Numbers of some images, their regions, and why some could not be read. Threads decode ahead of it."""
        size = self.config.batch_size
        rows = [np.arange(s, min(s + size, len(images))) for s in range(0, len(images), size)]
        threads, pin = threads_of(self.config.workers), self.device.type == "cuda"
        with closing(decoded(rows, images, self.network.transform, pin, threads)) as coming:
            for some, pixels, errors in coming:
                yield some, self.regions(pixels), errors
