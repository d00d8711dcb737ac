"""Frozen backbones: image in, map of regions out.

A backbone is a network without its head, its own transform, the grid its regions lie on, a name, the digest of its
weights, and what its pretraining saw. Known are torchvision's convolutional classifiers (resnet101, ...), any model of
timm (timm:NAME), the image towers of open_clip (open_clip:MODEL/PRETRAINED), and demo, the repository's own small
network; a file in core/features/added/ adds another (docs/adding.md).
"""

import logging
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.datasets.class_text import class_words, embed, prompts
from core.datasets.metadata import Metadata
from core.datasets.registry import DataSet
from core.features import added, clip  # noqa: F401 (importing them registers their backbones)
from core.features.images import Transform
from core.features.trunks import BUILDERS, RANDOM, TIMM, Trunk
from core.features.weights import is_weights_file, state_sha256
from core.files.atomic import sha256_file
from core.files.errors import UserError, first_line

SAW_UNSEEN = ("no", "unknown", "yes")
_log = logging.getLogger(__name__)


class Backbone(nn.Module):
    """A network in eval mode without gradients that returns a map of regions, (B,3,H,W) to (B,D,h,w)."""

    def __init__(self, name: str, trunk: Trunk, sha256: str, size: int, pool: int) -> None:
        super().__init__()
        self.name, self.sha256 = name, sha256
        self.pretraining = "nothing" if trunk.weights == RANDOM else trunk.pretraining
        self.weights = Path(trunk.weights).name if is_weights_file(trunk.weights) else trunk.weights
        self.network = trunk.network.eval().requires_grad_(False)  # with its head, as the digest has it
        self.trunk = (trunk.maps or trunk.network).eval()
        self.transform: Transform = trunk.transform.at(size)
        self.input_size, self.layer, self.pool = size, trunk.layer, 1
        self.categories, self._encode = trunk.categories, trunk.encode
        D, h, w = self(torch.zeros(1, 3, size, size)).shape[1:]
        if h % pool or w % pool:
            raise UserError(f"--pool {pool}: {h}x{w} regions at {size} pixels; choose an --input-size that it divides")
        self.pool, self.shape = pool, (D, h // pool, w // pool)

    @torch.inference_mode()
    def forward(self, images: Tensor) -> Tensor:
        """(B,3,H,W) normalised images to (B,D,h,w)."""
        return self.maps(images)

    def maps(self, images: Tensor) -> Tensor:
        """:meth:`forward` outside of inference mode, for training and tracing."""
        maps: Tensor = self.trunk(images)
        return F.avg_pool2d(maps, self.pool) if self.pool > 1 else maps

    def class_text(self, metadata: Metadata) -> np.ndarray | None:
        """(C,2,E) float32 embeddings of the classes' names, and of these with attributes; None without a text tower.

        To be asked for before the network is moved to a device or another type.
        """
        if self._encode is None:
            return None
        m, names = metadata, metadata.attribute_names
        return embed(prompts(m.name, m.class_names, m.att[:, : len(names)], names), self._encode)

    def saw_unseen(self, dataset: DataSet, unseen_classes: Sequence[str], declared: str | None = None) -> str:
        """Whether pretraining saw images of the unseen classes: no, unknown or yes.

        A category of torchvision's weights that ends in an unseen class's name makes it "yes": the class, a kind of it,
        or a thing called so (ImageNet's mouse is a computer's). That none does proves little (its horses are sorrels):
        "unknown". ``declared`` is what a user says of own weights or timm's.
        """
        if self.pretraining in ("nothing", "demo"):  # the demo's learns from seen classes only
            return "no" if self.pretraining == "nothing" or dataset.source == "DEMO" else "unknown"
        if not self.categories:
            return declared or "unknown"
        known = [f" {class_words(category).lower()}" for category in self.categories]
        found = [name for name in unseen_classes if any(k.endswith(f" {class_words(name).lower()}") for k in known)]
        if found:
            _log.info("pretraining saw %d of the unseen classes, or things called so: %s", len(found), ", ".join(found))
        return "yes" if found else "unknown"

    def record(self) -> dict[str, str | int]:
        """What a feature file says about it; the same record, the same features."""
        return {
            "backbone": self.name,
            "layer": self.layer,
            "weights": self.weights,
            "weights_sha256": self.sha256,
            "transform": str(self.transform),
            "input_size": self.input_size,
            "pool": self.pool,
            "flip": "no",  # versions up to 0.2 could average each image with its mirror image
        }


def build_backbone(
    name: str, weights: str | Path | None = None, *, input_size: int | None = None, pool: int = 1
) -> Backbone:
    """A frozen backbone, tried on one blank image.

    torchvision's networks with IMAGENET1K_V1 weights or a weights file get Resize(size) and CenterCrop(size), the
    protocol of DAZLE and its relatives (the preset of IMAGENET1K_V1 would resize to 256 and crop 224). All others get
    their own transform, which may crop: timm's models with a weights file too. Args are ExtractionConfig's.
    """
    given = None if weights is None else str(weights)
    prefix = max((p for p in BUILDERS if name.startswith(p)), key=len)
    with torch.random.fork_rng(devices=[]):  # initial weights are always the same, and the caller's numbers left alone
        torch.manual_seed(0)
        trunk = BUILDERS[prefix](name.removeprefix(prefix), given)
    # of the network as it was made, before its position embeddings are interpolated
    digest = sha256_file(given) if given and is_weights_file(given) else state_sha256(trunk.network)
    size = input_size or trunk.transform.crop
    try:
        if size != trunk.transform.crop and size % trunk.multiple:
            raise ValueError(f"its side is a multiple of {trunk.multiple}")
        if size != trunk.transform.crop and trunk.resize is not None:
            trunk.resize(img_size=(size, size))
        return Backbone(name, trunk, digest, size, pool)
    except (RuntimeError, AssertionError, ValueError, IndexError, KeyError) as error:
        raise UserError(f"{name} cannot take images of {size} pixels ({first_line(error)[:200]})") from error


def file_form(name: str) -> str:
    """A backbone's name as feature files carry it: resnet101 -> ResNet_101 (DAZLE's), others as they are."""
    match = re.fullmatch(r"resnet(\d+)", name)
    return f"ResNet_{match[1]}" if match else re.sub(r"[^\w.+-]", "_", name.replace(TIMM, "timm_"))
