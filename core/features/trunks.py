"""The networks of torchvision, timm, open_clip and the demo, each with where its map of regions comes out.

A trunk is a classifier without what follows its last map: the logits of a convolutional classifier (SqueezeNet's are
1000 x 13 x 13) are no regions. Vision transformers give their patch tokens, in the order of the picture's rows; class
and register tokens are left out.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from core.demo.backbone import DemoBackbone
from core.features.clip import load_clip
from core.features.images import Transform
from core.features.weights import HEADS, fetch_cached, is_weights_file, load_weights
from core.files.errors import UserError, first_line, library

DEMO, TIMM, OPEN_CLIP, RANDOM = "demo", "timm:", "open_clip:", "random"
DEFAULT_WEIGHTS = "IMAGENET1K_V1"  # what DAZLE and its relatives used; torchvision's DEFAULT is V2, other features
DEMO_SIZE = 112
_AFTER = ("avgpool", "dropout", "fc", "classifier")  # torchvision's modules behind the last map, in every classifier
_IN_PLACE = {"densenet": "relu"}  # a node, where what follows the module changes its output in place


@dataclass(frozen=True, kw_only=True)
class Trunk:
    """A network with weights, and how its maps are read."""

    network: nn.Module  # whose weights are recorded
    transform: Transform
    weights: str  # their name
    pretraining: str = "unknown"  # what the weights saw: "imagenet1k", "demo", "nothing" or "unknown"
    layer: str = "forward"  # where the map comes out, for the record
    maps: nn.Module | None = (
        None  # (B,3,H,W) to the last map (B,D,h,w), or a list: it, then each layer's; None: network
    )
    resize: Callable[[int], None] | None = None  # makes the network take another image side
    categories: tuple[str, ...] = ()  # names of the classes it was trained on, where they are known
    encode: Callable[[Sequence[str]], np.ndarray] | None = None  # texts (n,) to unit embeddings (n,D)


Builder = Callable[[str, str | None, Sequence[str]], Trunk]
BUILDERS: dict[str, Builder] = {}


def build(prefix: str) -> Callable[[Builder], Builder]:
    """Register ``f(name, weights, layers) -> Trunk`` for backbones whose names begin with ``prefix`` (docs/adding.md).

    ``name`` comes without the prefix; ``weights`` is None, a name, or a file that is there; weights are drawn from a
    seeded generator.
    """

    def register(builder: Builder) -> Builder:
        known = BUILDERS.get(prefix)
        if known is not None and (known.__module__, known.__qualname__) != (builder.__module__, builder.__qualname__):
            raise UserError(f"two backbones are named {prefix!r}: in {known.__module__} and in {builder.__module__}")
        BUILDERS[prefix] = builder
        return builder

    return register


def _no_layers(name: str, layers: Sequence[str]) -> None:
    if layers:
        raise UserError(f"--layers {','.join(layers)}: {name} has one map alone; leave the flag out")


@build(DEMO)
def _demo(name: str, weights: str | None, layers: Sequence[str]) -> Trunk:
    _no_layers(DEMO, layers)
    network = DemoBackbone()
    if weights is not None and is_weights_file(weights):
        load_weights(network, Path(weights))
    elif weights != RANDOM:
        raise UserError("the demo backbone needs --weights <file>.safetensors (or random)")
    transform = Transform(DEMO_SIZE, DEMO_SIZE, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))  # it normalises itself
    saw = "nothing" if weights == RANDOM else "demo"
    return Trunk(network=network, transform=transform, weights=_shown(weights), pretraining=saw, layer="body")


@build("")
def _torchvision(name: str, weights: str | None, layers: Sequence[str]) -> Trunk:
    import torchvision  # takes seconds, which nothing else in this module needs
    from torchvision.models.feature_extraction import create_feature_extractor

    models = torchvision.models.list_models(module=torchvision.models)
    if name not in models or name.startswith(("vit_", "swin_")):
        near = ", ".join(m for m in models if m[:4] == name[:4] and not m.startswith(("vit_", "swin_")))
        raise UserError(f"no backbone {name!r} of torchvision; try {near or 'resnet101, or timm:NAME (timm:vit_...)'}")
    known = {w.name: w for w in torchvision.models.get_model_weights(name)}
    usual = known.get(DEFAULT_WEIGHTS) or next(iter(known.values()))
    weights = weights or usual.name
    if weights not in known and not is_weights_file(weights) and weights != RANDOM:
        raise UserError(
            f"no weights {weights!r} for {name}: choose {', '.join(known)}, random, or a file ending in .safetensors, "
            ".pth, .pt, .pth.tar, .ckpt or .bin"
        )
    entry = known.get(weights, usual)
    preset = entry.transforms()
    crop = preset.crop_size[0]
    # the shorter side is kept whole but with weights of another preset: the protocol of DAZLE and its relatives
    resize = crop if weights not in known or weights == DEFAULT_WEIGHTS else preset.resize_size[0]
    for_imagenet = {"transform_input": True, "init_weights": False} if name in ("inception_v3", "googlenet") else {}
    network = torchvision.models.get_model(name, weights=None, **for_imagenet).eval()
    if weights != RANDOM:
        load_weights(network, fetch_cached(entry.url) if weights in known else Path(weights))
    children = dict(network.named_children())
    before = list(children)[: min(i for i, child in enumerate(children) if child in _AFTER)]
    last = next(child for child in reversed(before) if child not in HEADS)
    last += f".{len(children[last]) - 1}" if isinstance(children[last], nn.ModuleList) else ""  # type: ignore[arg-type]
    if last in layers:
        raise UserError(f"--layers {last}: that is the last map, which is taken anyway; name an earlier one")
    node = next((node for family, node in _IN_PLACE.items() if name.startswith(family)), last)
    try:
        maps = create_feature_extractor(
            network, {node: "last"} | {layer: layer for layer in layers}, suppress_diff_warning=True
        )
    except ValueError as error:
        there = [n for n, _ in network.named_modules() if n and n.count(".") < 2 and n.split(".")[0] not in _AFTER]
        raise UserError(
            f"--layers {','.join(layers)}: {name} has no such module; it has {', '.join(there[-12:])}"
        ) from error
    saw = "nothing" if weights == RANDOM else "imagenet1k" if weights.startswith("IMAGENET1K_V") else "unknown"
    categories = tuple(entry.meta["categories"]) if saw == "imagenet1k" else ()  # SWAG's weights saw Instagram
    return Trunk(
        network=network,
        transform=Transform(crop, resize, preset.interpolation.value, tuple(preset.mean), tuple(preset.std)),
        weights=_shown(weights),
        pretraining=saw,
        layer=last,
        maps=maps,
        categories=categories,
    )


class _TimmMaps(nn.Module):
    """The maps of a timm model: what its forward_features gives, then the intermediates of the layers asked for."""

    def __init__(self, network: Any, layers: Sequence[str]) -> None:
        super().__init__()
        self.network = network
        modules = [str(stage["module"]) for stage in getattr(network, "feature_info", [])]
        if unknown := [layer for layer in layers if layer not in modules]:
            raise UserError(f"--layers {','.join(unknown)}: no such module; it has {', '.join(modules[-12:])}")
        self.indices = [modules.index(layer) for layer in layers]
        self.last_axis = getattr(network, "output_fmt", "") == "NHWC"  # maps are (B,h,w,D), not (B,D,h,w)
        # models that do not say it have their class token in front, where they have one (CaiT up to timm 1.0.28)
        self.prefix = getattr(network, "num_prefix_tokens", int(hasattr(network, "cls_token"))) or 0

    def forward(self, images: Tensor) -> list[Tensor]:
        if not self.indices:
            return [self._to_map(self.network.forward_features(images))]
        ordered = sorted(set(self.indices))
        last, found = self.network.forward_intermediates(images, indices=ordered, output_fmt="NCHW")
        return [self._to_map(last), *(found[ordered.index(i)] for i in self.indices)]

    def _to_map(self, output: Tensor) -> Tensor:
        """(B,D,h,w) from (B,D,h,w), (B,h,w,D), or tokens (B,prefix+h*w,D)."""
        if output.ndim == 4:
            return output.permute(0, 3, 1, 2) if self.last_axis else output
        patches = output[:, self.prefix :].transpose(1, 2)  # (B,D,R)
        return patches.unflatten(2, (side := math.isqrt(patches.shape[2]), side))


@build(TIMM)
def _timm(name: str, weights: str | None, layers: Sequence[str]) -> Trunk:
    timm, data = (library(module, f"--backbone {TIMM}{name}", "timm") for module in ("timm", "timm.data"))
    weights = weights or "pretrained"
    is_file = is_weights_file(weights)
    if not is_file and weights not in ("pretrained", RANDOM):
        raise UserError(f"--weights {weights}: for timm models choose pretrained, random, or a weights file")
    if not timm.is_model(name):
        near = timm.list_models(f"*{name.split('.')[0][:12]}*")[:12]
        raise UserError(f"no backbone {name!r} in timm; try {', '.join(near) or 'what timm.list_models() names'}")
    try:
        network = timm.create_model(name, pretrained=weights == "pretrained", num_classes=0).eval()
    except Exception as error:  # of the hub's client: nearly anything
        raise UserError(
            f"{TIMM}{name} could not be made with its weights ({first_line(error)}). Offline? Download its "
            f"model.safetensors elsewhere and name it: --backbone {TIMM}{name} --weights model.safetensors"
        ) from error
    if is_file:
        load_weights(network, Path(weights))
    config = data.resolve_model_data_config(network)
    _, height, width = config["input_size"]
    if height != width:
        raise UserError(f"{TIMM}{name} was made for {height}x{width} pixels; only square images are fed here")
    # as timm computes it, of a weights file too: a downloaded one gives the features that the model's name gives
    resize = max(height, math.floor(height / config["crop_pct"]))
    set_size = getattr(network, "set_input_size", None)
    patch = getattr(getattr(network, "patch_embed", None), "patch_size", None)

    def set_side(size: int) -> None:
        if isinstance(patch, tuple) and size % patch[0]:  # pixels beyond the last whole patch would not be seen
            raise ValueError(f"its patches have {patch[0]} pixels")
        network.set_input_size(img_size=(size, size))

    takes = callable(set_size) and "img_size" in inspect.signature(set_size).parameters
    return Trunk(
        network=network,
        transform=Transform(height, resize, config["interpolation"], tuple(config["mean"]), tuple(config["std"])),
        weights=_shown(weights),
        pretraining="nothing" if weights == RANDOM else "unknown",
        layer="forward_features",
        maps=_TimmMaps(network, layers),
        resize=set_side if takes else None,
    )


@build(OPEN_CLIP)
def _open_clip(name: str, weights: str | None, layers: Sequence[str]) -> Trunk:
    _no_layers(f"{OPEN_CLIP}{name}", layers)
    clip, of = load_clip(name, weights)
    return Trunk(
        network=clip,
        transform=clip.transform,
        weights=_shown(of),
        pretraining="nothing" if of == RANDOM else "unknown",
        layer="forward_features",
        encode=clip.encode,
    )


def own_size(name: str) -> int:
    """Image side that a backbone was made for, without building it; 224 where that is not known."""
    try:
        if name.startswith(TIMM):
            config = library("timm", name, "timm").get_pretrained_cfg(name.removeprefix(TIMM))
            return int(config.input_size[1])
        if name.startswith(OPEN_CLIP):
            config = library("open_clip", name, "open_clip_torch").get_model_config(
                name.removeprefix(OPEN_CLIP).split("/")[0]
            )
            return int(config["vision_cfg"]["image_size"])
        if name in BUILDERS:
            return DEMO_SIZE if name == DEMO else BUILDERS[name]("", RANDOM, ()).transform.crop
        import torchvision

        known = {w.name: w for w in torchvision.models.get_model_weights(name)}
        return int((known.get(DEFAULT_WEIGHTS) or next(iter(known.values()))).transforms().crop_size[0])
    except (UserError, RuntimeError, ValueError, AttributeError, KeyError, TypeError):
        return 224


def _shown(weights: str | None) -> str:
    return Path(weights).name if weights and is_weights_file(weights) else str(weights)
