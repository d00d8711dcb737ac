"""Frozen backbones: image in, map of regions out.

A backbone is a network, its own transform, the grid its regions lie on, a name, the digest of its weights, and what its
pretraining saw. Known are torchvision's classifiers (resnet101, vit_b_16, swin_t, ...), models of timm (timm:NAME), the
image towers of open_clip (open_clip:MODEL/PRETRAINED) and demo, the repository's own small network.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.datasets.metadata import Metadata
from core.datasets.registry import DataSet
from core.features.clip import clip_trunk
from core.features.images import Transform
from core.features.trunks import FORWARD, OPEN_CLIP, TIMM, Trunk, build_trunk, spatial_outputs
from core.features.weights import is_weights_file, state_sha256
from core.files.atomic import sha256_file
from core.files.errors import UserError, first_line

SAW_UNSEEN = ("no", "unknown", "yes")
# Classes of the proposed splits that no class of ImageNet-1k shows. AWA2: its ten unseen ones (23 of its 50 classes are
# in ImageNet-1k, all of them seen). CUB: of its 200 species ImageNet-1k has two, both seen.
_AWA2_UNSEEN = frozenset(
    ["sheep", "dolphin", "bobcat", "blue+whale", "rat", "horse", "walrus", "giraffe", "bat", "seal"]
)
_CUB_IN_IMAGENET = ("Indigo_Bunting", "Red_breasted_Merganser")


class Backbone(nn.Module):
    """A network in eval mode without gradients that returns a map of regions, (B,3,H,W) to (B,D,h,w)."""

    def __init__(self, name: str, trunk: Trunk, sha256: str, size: int, layers: Sequence[str]) -> None:
        """Args are those of :func:`build_backbone`; trunk is the network at ``size`` pixels, sha256 of its weights."""
        super().__init__()
        self.name, self.weights, self.sha256, self.pretraining = name, trunk.weights, sha256, trunk.pretraining
        self.network = trunk.network.eval().requires_grad_(False)
        self.transform: Transform = trunk.transform.at(size)
        self.input_size, self.layers, self.pool, self.flip = size, tuple(layers), 1, False
        self._trunk = trunk
        self._last = trunk.layer
        self._outputs: dict[str, Tensor] = {}
        for layer in (self._last, *self.layers):
            if layer != FORWARD:
                keep = functools.partial(_keep, self._outputs, layer)  # no closure: a copy of this keeps its own
                self.network.get_submodule(layer).register_forward_hook(keep)
        self.shape: tuple[int, int, int] = (0, 0, 0)  # (D,h,w); known after the first forward pass

    @property
    def layer(self) -> str:
        """The layers' names, the last first, for the record."""
        return "+".join((self._last, *self.layers))

    def train(self, mode: bool = True) -> Backbone:
        """Stays in eval mode: it is frozen."""
        return super().train(False)

    @torch.inference_mode()
    def forward(self, images: Tensor) -> Tensor:
        """(B,3,H,W) normalised images to (B,D,h,w)."""
        return self.maps(images)

    def maps(self, images: Tensor) -> Tensor:
        """:meth:`forward` outside of inference mode, for tracing."""
        maps = self.last_map(images)
        if self.flip:
            maps = (maps + self.last_map(images.flip(3)).flip(3)) / 2
        return F.avg_pool2d(maps, self.pool) if self.pool > 1 else maps

    def last_map(self, images: Tensor) -> Tensor:
        """The last layer's map, and the earlier ones' averaged to its grid behind it."""
        whole: Any = self.network
        if self._last == FORWARD:
            self._outputs[FORWARD] = whole.forward_features(images)
        else:
            whole(images)
        if unused := [layer for layer in self.layers if layer not in self._outputs]:
            raise ValueError(f"{', '.join(unused)} is not run on the way to the last map")
        maps = [self._trunk.to_map(self._outputs.pop(layer)) for layer in (self._last, *self.layers)]
        grid = (maps[0].shape[2], maps[0].shape[3])  # (h,w)
        for layer, other in zip(self.layers, maps[1:], strict=True):
            if other.shape[2] < grid[0]:
                raise ValueError(f"the map of {layer} is smaller than the last one's {grid[0]}x{grid[1]}")
        pooled = [m if (m.shape[2], m.shape[3]) == grid else F.adaptive_avg_pool2d(m, grid) for m in maps]
        return pooled[0] if len(pooled) == 1 else torch.cat(pooled, dim=1)

    def class_text(self, metadata: Metadata) -> np.ndarray | None:
        """(C,2,E) float32, texts of the classes; None of a network without a text tower."""
        return None

    def saw_unseen(self, dataset: DataSet, unseen_classes: Sequence[str], declared: str | None = None) -> str:
        """Whether pretraining saw images of the unseen classes: no, unknown or yes.

        Args:
            declared: what a user says of own weights or timm's; torchvision's, the demo's and random ones are known.
        """
        names = [re.sub(r"^\d+\.", "", name) for name in unseen_classes]
        if self.pretraining in ("nothing", "demo"):  # the demo's learns from seen classes only
            return "no" if self.pretraining == "nothing" or dataset.source == "DEMO" else "unknown"
        if self.pretraining != "imagenet1k":
            return declared or "unknown"
        if dataset.source == "CUB":
            return "yes" if any(name in _CUB_IN_IMAGENET for name in names) else "no"
        return "no" if dataset.source == "AWA2" and set(names) <= _AWA2_UNSEEN else "unknown"

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
            "flip": "average of both views" if self.flip else "no",
        }


def _keep(outputs: dict[str, Tensor], layer: str, module: nn.Module, inputs: Any, output: Tensor) -> None:
    outputs[layer] = output


def build_backbone(
    name: str, weights: str | Path | None = None, *, input_size: int | None = None, layers: Sequence[str] = (),
    pool: int = 1, flip: bool = False,
) -> Backbone:  # fmt: skip
    """A frozen backbone, tried on one blank image.

    IMAGENET1K_V1 weights and weights files get Resize(size) and CenterCrop(size), the protocol of DAZLE and its
    relatives (the preset of IMAGENET1K_V1 would resize to 256 and crop 224); all others their own transform.

    Args:
        name: a torchvision classifier, "timm:NAME", "open_clip:MODEL/PRETRAINED", or "demo".
        weights: a torchvision weights name, a weights file, "pretrained" (timm), or "random" (seeded; for tests). None:
            IMAGENET1K_V1, of timm what the model's name says.
        input_size: image side in pixels; None: what the network was made for.
        layers: modules whose maps, averaged to the grid of the last map, are put behind it, (B,D+D',h,w).
        pool: average pool x pool regions into one.
        flip: average the maps of the image and of its mirror image, the latter's mirrored back.

    Raises:
        UserError: unknown names, unreadable files, keys or shapes that do not fit, or a size the network cannot take.
    """
    given = None if weights is None else str(weights)
    trunk = clip_trunk(name, given) if name.startswith(OPEN_CLIP) else build_trunk(name, given)
    # of the network as it was made, before its position embeddings are interpolated
    digest = sha256_file(given) if given and is_weights_file(given) else state_sha256(trunk.network)
    size = input_size or trunk.transform.crop
    known = dict(trunk.network.named_modules())
    if unknown := [layer for layer in layers if layer not in known or not layer]:
        raise UserError(f"--layers {','.join(unknown)}: {name} has no such module; {_layers_of(trunk)}")
    if trunk.layer in layers:
        raise UserError(f"--layers {trunk.layer}: that is the last map, which is taken anyway; name an earlier one")
    error = _fit(trunk, size)
    if error is not None:
        raise UserError(f"{name} cannot take images of {size} pixels ({error}); it takes {_sizes(trunk, size)}")
    backbone = Backbone(name, trunk, digest, size, layers)
    try:
        maps = backbone(torch.zeros(1, 3, size, size))
    except (ValueError, KeyError, AttributeError, RuntimeError) as failed:
        raise UserError(
            f"--layers {','.join(layers)} of {name}: {first_line(failed)[:200]}; {_layers_of(trunk)}"
        ) from failed
    shape = maps.shape
    if pool > 1 and (shape[2] % pool or shape[3] % pool):
        raise UserError(
            f"--pool {pool}: {name} at {size} pixels has {shape[2]}x{shape[3]} regions, which cannot be averaged by "
            f"{pool}; choose another --input-size"
        )
    backbone.pool, backbone.flip = pool, flip
    backbone.shape = (shape[1], shape[2] // pool, shape[3] // pool)
    return backbone


def _fit(trunk: Trunk, size: int) -> str | None:
    """Make the network take that image side; the reason if it cannot."""
    if size % trunk.patch:
        return f"its patches have {trunk.patch} pixels"
    try:
        if trunk.resize is not None and size != trunk.transform.crop:
            trunk.resize(size)
        with torch.inference_mode():
            blank, network = torch.zeros(1, 3, size, size), trunk.network.eval()
            if trunk.layer == FORWARD:
                trunk.to_map(network.forward_features(blank))  # type: ignore[operator]
            else:
                network(blank)
    except (RuntimeError, AssertionError, ValueError, IndexError) as error:
        if "memory" in str(error):
            raise UserError(
                f"the memory is not enough for one image of {size} pixels ({first_line(error)[:200]})"
            ) from error
        return first_line(error)[:200]
    return None


def _sizes(trunk: Trunk, size: int) -> str:
    """Image sides that a network takes, for a message."""
    own = trunk.transform.crop
    if trunk.patch > 1:
        below = max(trunk.patch, size // trunk.patch * trunk.patch)
        near = f"multiples of {trunk.patch}, such as {below} and {below + trunk.patch}"
        if size % trunk.patch:
            return near
    tried = {own} | {max(step, (size + up) // step * step) for step in (32, 64) for up in (0, step)} | {128, 224, 256}
    takes = sorted(side for side in tried if side != size and _fit(trunk, side) is None)
    return ", ".join(map(str, takes)) or f"{own}"


def _layers_of(trunk: Trunk) -> str:
    """Some modules whose maps could be taken, for a message."""
    if trunk.layer == "encoder":
        names = [f"encoder.layers.{name}" for name, _ in trunk.network.encoder.layers.named_children()]  # type: ignore[union-attr]
    elif hasattr(trunk.network, "blocks"):
        names = [f"blocks.{name}" for name, _ in trunk.network.blocks.named_children()]  # type: ignore[union-attr]
    else:
        outputs = spatial_outputs(trunk.network, trunk.transform.crop)
        names = [name for name in outputs if name and name.count(".") < 2 and name != trunk.layer]
    return f"it has {', '.join(names[-12:])}"


def file_form(name: str) -> str:
    """A backbone's name as feature files carry it: resnet101 -> ResNet_101 (DAZLE's), others as they are."""
    match = re.fullmatch(r"resnet(\d+)", name)
    if match:
        return f"ResNet_{match[1]}"
    plain = re.sub(r"[^\w.+-]", "_", name.replace(TIMM, "timm_"))
    return plain if len(plain) < 100 else plain[:80] + hashlib.sha256(plain.encode()).hexdigest()[:8]
