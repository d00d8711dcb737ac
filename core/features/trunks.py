"""The networks of torchvision, timm and the demo, each with where its map of regions comes out.

A trunk is a classifier without what follows its last map: logits (SqueezeNet's are 1000 x 13 x 13) are no regions.
Vision transformers give their patch tokens, in the order of the picture's rows, without class and register tokens.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from core.demo.backbone import DemoBackbone
from core.features.images import Transform
from core.features.weights import HEADS, fetch_cached, from_hub, is_weights_file, load_weights
from core.files.errors import UserError, library

DEMO, TIMM, OPEN_CLIP, RANDOM = "demo", "timm:", "open_clip:", "random"
DEFAULT_WEIGHTS = "IMAGENET1K_V1"  # what DAZLE and its relatives used; torchvision's DEFAULT is V2, other features
_AFTER = ("avgpool", "dropout", "fc", "classifier")  # torchvision's modules behind the last map, in every classifier


@dataclass(frozen=True, kw_only=True)
class Trunk:
    """A network with weights, and how its maps are read."""

    network: nn.Module  # whose weights are recorded
    transform: Transform
    weights: str  # their name or file
    pretraining: str = "unknown"  # what weights but random ones saw: "imagenet1k", "demo", "nothing" or "unknown"
    layer: str = "forward"  # where the map comes out, for the record
    maps: nn.Module | None = None  # (B,3,H,W) to the map (B,D,h,w); None: network
    resize: Callable[..., None] | None = None  # resize(img_size=(h,w)) makes the network take other images
    multiple: int = 1  # image sides are multiples of it, or pixels at the edge would not be seen
    categories: tuple[str, ...] = ()  # names of the classes it was trained on, where they are known
    encode: Callable[[Sequence[str]], np.ndarray] | None = None  # texts (n,) to unit embeddings (n,E)


class Maps(nn.Module):
    """Images (B,3,H,W) to the map (B,D,h,w) that ``read(network, images)`` takes out of a network."""

    def __init__(self, network: nn.Module, read: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.network, self.read = network, read

    def forward(self, images: Tensor) -> Tensor:
        return self.read(self.network, images)


Builder = Callable[[str, str | None], Trunk]
BUILDERS: dict[str, Builder] = {}


def build(prefix: str) -> Callable[[Builder], Builder]:
    """Register ``f(name, weights) -> Trunk`` for backbones whose names begin with ``prefix``; ``name`` is the rest."""

    def register(builder: Builder) -> Builder:
        BUILDERS[prefix] = builder
        return builder

    return register


def chosen(backbone: str, weights: str | None, *known: str) -> str:
    """The value of ``--weights``: None is the first known name; refused is what is neither known nor a file."""
    weights = weights or known[0]
    if weights not in (*known, RANDOM) and not is_weights_file(weights):
        raise UserError(
            f"no weights {weights!r} for {backbone}: choose {', '.join((*known, RANDOM))}, or a weights file"
        )
    return weights


@build(DEMO)
def _demo(name: str, weights: str | None) -> Trunk:
    network, weights = DemoBackbone(), chosen(DEMO, weights or "none")
    load_weights(network, weights)
    return Trunk(
        network=network,
        transform=Transform(112, 112, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)),  # it normalises itself
        weights=weights,
        pretraining="demo",
        layer="body",
    )


@build("")
def _torchvision(name: str, weights: str | None) -> Trunk:
    import torchvision  # takes seconds, which nothing else in this module needs
    from torchvision.models.feature_extraction import create_feature_extractor

    if name not in torchvision.models.list_models(module=torchvision.models) or name.startswith(("vit_", "swin_")):
        raise UserError(f"no backbone {name!r} of torchvision; try resnet101, or timm:NAME (timm:vit_...)")
    known = {w.name: w for w in torchvision.models.get_model_weights(name)}
    usual = known.get(DEFAULT_WEIGHTS) or next(iter(known.values()))
    weights = chosen(name, weights, usual.name, *known)
    entry = known.get(weights, usual)
    for_imagenet = {"transform_input": True, "init_weights": False} if name in ("inception_v3", "googlenet") else {}
    network = torchvision.models.get_model(name, weights=None, **for_imagenet).eval()
    load_weights(network, str(fetch_cached(entry.url)) if weights in known else weights)
    children = dict(network.named_children())
    before = list(children)[: min(i for i, child in enumerate(children) if child in _AFTER)]
    last = next(child for child in reversed(before) if child not in HEADS)
    last += f".{len(children[last]) - 1}" if isinstance(children[last], nn.ModuleList) else ""  # type: ignore[arg-type]
    node = "relu" if name.startswith("densenet") else last  # it follows, and changes the last module's output in place
    extractor = create_feature_extractor(network, [node], suppress_diff_warning=True)
    preset = entry.transforms()
    crop = preset.crop_size[0]
    # the shorter side is kept whole but with weights of another preset: the protocol of DAZLE and its relatives
    resize = crop if weights not in known or weights == DEFAULT_WEIGHTS else preset.resize_size[0]
    saw = "imagenet1k" if weights.startswith("IMAGENET1K_V") else "unknown"  # SWAG's weights saw Instagram
    return Trunk(
        network=network,
        transform=Transform(crop, resize, preset.interpolation.value, tuple(preset.mean), tuple(preset.std)),
        weights=weights,
        pretraining=saw,
        layer=last,
        maps=Maps(extractor, lambda network, images: network(images)[node]),
        categories=tuple(entry.meta["categories"]) if saw == "imagenet1k" else (),
    )


def _timm_map(network: Any, images: Tensor) -> Tensor:
    """(B,D,h,w) of what a timm model gives: (B,D,h,w), (B,h,w,D), or tokens (B,prefix+h*w,D)."""
    output: Tensor = network.forward_features(images)
    if output.ndim == 4:
        return output.permute(0, 3, 1, 2) if getattr(network, "output_fmt", "") == "NHWC" else output
    # models that do not say it have their class token in front, where they have one (CaiT up to timm 1.0.28)
    prefix = getattr(network, "num_prefix_tokens", int(hasattr(network, "cls_token"))) or 0
    patches = output[:, prefix:].transpose(1, 2)  # (B,D,R)
    return patches.unflatten(2, (side := math.isqrt(patches.shape[2]), side))


@build(TIMM)
def _timm(name: str, weights: str | None) -> Trunk:
    with library(f"--backbone {TIMM}{name}", "timm"):
        import timm
    weights = chosen(f"{TIMM}{name}", weights, "pretrained")
    if not timm.is_model(name):
        raise UserError(f"no backbone {name!r} in timm; timm.list_models() names those there are")
    with from_hub(f"{TIMM}{name}", "model.safetensors"):
        network: Any = timm.create_model(name, pretrained=weights == "pretrained", num_classes=0).eval()
    load_weights(network, weights)
    config = timm.data.resolve_model_data_config(network)
    side = config["input_size"][1]
    resize = max(side, math.floor(side / config["crop_pct"]))  # as timm computes it
    patch = getattr(getattr(network, "patch_embed", None), "patch_size", None)
    return Trunk(
        network=network,
        transform=Transform(side, resize, config["interpolation"], tuple(config["mean"]), tuple(config["std"])),
        weights=weights,
        layer="forward_features",
        maps=Maps(network, _timm_map),
        resize=getattr(network, "set_input_size", None),
        multiple=patch[0] if isinstance(patch, tuple) else 1,
    )
