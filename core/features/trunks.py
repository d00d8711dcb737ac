"""The networks of torchvision, timm and the demo, each with where its map of regions comes out.

A trunk is a classifier without what follows its last map: the logits of a convolutional classifier (SqueezeNet's are
1000 x 13 x 13) are no regions. Vision transformers give their patch tokens, in the order of the picture's rows; class
and register tokens are left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from core.demo.backbone import DemoBackbone
from core.features.images import Transform
from core.features.weights import HEADS, fetch_cached, is_weights_file, load_weights
from core.files.errors import UserError, first_line, library

DEMO, TIMM, OPEN_CLIP, RANDOM = "demo", "timm:", "open_clip:", "random"
DEFAULT_WEIGHTS = "IMAGENET1K_V1"  # what DAZLE and its relatives used; torchvision's DEFAULT is V2, other features
DEMO_SIZE = 112
_AFTER = ("avgpool", "dropout", "fc", "classifier")  # torchvision's modules behind the last map, in every classifier


@dataclass(frozen=True, kw_only=True)
class Trunk:
    """A network with weights, and how its maps are read."""

    network: nn.Module  # whose weights are recorded
    transform: Transform
    weights: str  # their name or file
    pretraining: str = "unknown"  # what the weights saw: "imagenet1k", "demo", "nothing" or "unknown"
    layer: str = "forward"  # where the map comes out, for the record
    maps: nn.Module | None = None  # (B,3,H,W) to the map (B,D,h,w), or to {"last": it, layer: its map}; None: network
    resize: Callable[[int], None] | None = None  # makes the network take another image side
    categories: tuple[str, ...] = ()  # names of the classes it was trained on, where they are known
    encode: Callable[[Sequence[str]], np.ndarray] | None = None  # texts (n,) to unit embeddings (n,E)


Builder = Callable[[str, str | None, Sequence[str]], Trunk]
BUILDERS: dict[str, Builder] = {}


def build(prefix: str) -> Callable[[Builder], Builder]:
    """Register ``f(name, weights, layers) -> Trunk`` for backbones whose names begin with ``prefix`` (docs/adding.md).

    ``name`` comes without the prefix; ``weights`` is None, a name, or a file; weights are drawn from a
    seeded generator.
    """

    def register(builder: Builder) -> Builder:
        BUILDERS[prefix] = builder
        return builder

    return register


@build(DEMO)
def _demo(name: str, weights: str | None, layers: Sequence[str]) -> Trunk:
    network = DemoBackbone()
    if weights is None or not (weights == RANDOM or is_weights_file(weights)):
        raise UserError("the demo backbone needs --weights <file>.safetensors (or random)")
    if weights != RANDOM:
        load_weights(network, Path(weights))
    return Trunk(
        network=network,
        transform=Transform(DEMO_SIZE, DEMO_SIZE, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)),  # it normalises itself
        weights=weights,
        pretraining="nothing" if weights == RANDOM else "demo",
        layer="body",
    )


@build("")
def _torchvision(name: str, weights: str | None, layers: Sequence[str]) -> Trunk:
    import torchvision  # takes seconds, which nothing else in this module needs
    from torchvision.models.feature_extraction import create_feature_extractor

    if name not in torchvision.models.list_models(module=torchvision.models) or name.startswith(("vit_", "swin_")):
        raise UserError(f"no backbone {name!r} of torchvision; try resnet101, or timm:NAME (timm:vit_...)")
    known = {w.name: w for w in torchvision.models.get_model_weights(name)}
    usual = known.get(DEFAULT_WEIGHTS) or next(iter(known.values()))
    weights = weights or usual.name
    if weights not in known and not is_weights_file(weights) and weights != RANDOM:
        raise UserError(f"no weights {weights!r} for {name}: choose {', '.join(known)}, random, or a weights file")
    entry = known.get(weights, usual)
    for_imagenet = {"transform_input": True, "init_weights": False} if name in ("inception_v3", "googlenet") else {}
    network = torchvision.models.get_model(name, weights=None, **for_imagenet).eval()
    if weights != RANDOM:
        load_weights(network, fetch_cached(entry.url) if weights in known else Path(weights))
    children = dict(network.named_children())
    before = list(children)[: min(i for i, child in enumerate(children) if child in _AFTER)]
    last = next(child for child in reversed(before) if child not in HEADS)
    last += f".{len(children[last]) - 1}" if isinstance(children[last], nn.ModuleList) else ""  # type: ignore[arg-type]
    node = "relu" if name.startswith("densenet") else last  # it follows, and changes the last module's output in place
    try:
        nodes = {node: "last"} | {layer: layer for layer in layers}
        maps = create_feature_extractor(network, nodes, suppress_diff_warning=True)
    except ValueError as error:
        raise UserError(f"--layers {','.join(layers)}: {name} has no such module; its last is {last}") from error
    preset = entry.transforms()
    crop = preset.crop_size[0]
    # the shorter side is kept whole but with weights of another preset: the protocol of DAZLE and its relatives
    resize = crop if weights not in known or weights == DEFAULT_WEIGHTS else preset.resize_size[0]
    saw = "nothing" if weights == RANDOM else "imagenet1k" if weights.startswith("IMAGENET1K_V") else "unknown"
    return Trunk(
        network=network,
        transform=Transform(crop, resize, preset.interpolation.value, tuple(preset.mean), tuple(preset.std)),
        weights=weights,
        pretraining=saw,
        layer=last,
        maps=maps,
        categories=tuple(entry.meta["categories"]) if saw == "imagenet1k" else (),  # SWAG's weights saw Instagram
    )


class _TimmMaps(nn.Module):
    """The maps of a timm model: what its forward_features gives, and the intermediates of the layers asked for."""

    def __init__(self, network: Any, layers: Sequence[str]) -> None:
        super().__init__()
        self.network = network
        modules = [str(stage["module"]) for stage in getattr(network, "feature_info", [])]
        if unknown := {*layers} - {*modules}:
            raise UserError(f"--layers {','.join(unknown)}: no such module; there are {', '.join(modules)}")
        self.indices = {layer: modules.index(layer) for layer in sorted(layers, key=modules.index)}
        self.last_axis = getattr(network, "output_fmt", "") == "NHWC"  # maps are (B,h,w,D), not (B,D,h,w)
        # models that do not say it have their class token in front, where they have one (CaiT up to timm 1.0.28)
        self.prefix = getattr(network, "num_prefix_tokens", int(hasattr(network, "cls_token"))) or 0

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        if not self.indices:
            return {"last": self._to_map(self.network.forward_features(images))}
        indices = list(self.indices.values())
        last, maps = self.network.forward_intermediates(images, indices=indices, output_fmt="NCHW")
        return {"last": self._to_map(last), **dict(zip(self.indices, maps, strict=True))}

    def _to_map(self, output: Tensor) -> Tensor:
        """(B,D,h,w) from (B,D,h,w), (B,h,w,D), or tokens (B,prefix+h*w,D)."""
        if output.ndim == 4:
            return output.permute(0, 3, 1, 2) if self.last_axis else output
        patches = output[:, self.prefix :].transpose(1, 2)  # (B,D,R)
        return patches.unflatten(2, (side := math.isqrt(patches.shape[2]), side))


@build(TIMM)
def _timm(name: str, weights: str | None, layers: Sequence[str]) -> Trunk:
    with library(f"--backbone {TIMM}{name}", "timm"):
        import timm
    weights = weights or "pretrained"
    if not is_weights_file(weights) and weights not in ("pretrained", RANDOM):
        raise UserError(f"--weights {weights}: for timm models choose pretrained, random, or a weights file")
    if not timm.is_model(name):
        raise UserError(f"no backbone {name!r} in timm; timm.list_models() names those there are")
    try:
        network: Any = timm.create_model(name, pretrained=weights == "pretrained", num_classes=0).eval()
    except Exception as error:  # of the hub's client: nearly anything
        raise UserError(
            f"{TIMM}{name} could not be made with its weights ({first_line(error)}). Offline? Download its "
            f"model.safetensors elsewhere and name it: --backbone {TIMM}{name} --weights model.safetensors"
        ) from error
    if is_weights_file(weights):
        load_weights(network, Path(weights))
    config = timm.data.resolve_model_data_config(network)
    side = config["input_size"][1]
    resize = max(side, math.floor(side / config["crop_pct"]))  # as timm computes it

    def set_side(size: int) -> None:
        patch: Any = getattr(getattr(network, "patch_embed", None), "patch_size", None)
        if isinstance(patch, tuple) and size % patch[0]:  # pixels beyond the last whole patch would not be seen
            raise ValueError(f"its patches have {patch[0]} pixels")
        network.set_input_size(img_size=(size, size))

    return Trunk(
        network=network,
        transform=Transform(side, resize, config["interpolation"], tuple(config["mean"]), tuple(config["std"])),
        weights=weights,
        pretraining="nothing" if weights == RANDOM else "unknown",
        layer="forward_features",
        maps=_TimmMaps(network, layers),
        resize=set_side if hasattr(network, "set_input_size") else None,
    )
