"""The networks of torchvision, timm and the demo, each with where its map of regions comes out.

A trunk is a classifier without what follows its last map: the logits of a convolutional classifier (SqueezeNet's are
1000 x 13 x 13) are no regions. Vision transformers give their patch tokens, in the order of the picture's rows; class
and register tokens are left out.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from core.features.images import Transform
from core.features.weights import HEADS, fetch_cached, fit_keys, is_weights_file, load_weights, read_state
from core.files.errors import UserError, first_line, library
from core.files.kinds import missing

DEMO, TIMM, OPEN_CLIP, RANDOM = "demo", "timm:", "open_clip:", "random"
DEFAULT_WEIGHTS = "IMAGENET1K_V1"  # what DAZLE and its relatives used; torchvision's DEFAULT is V2, other features
RANDOM_SEED = 0
DEMO_SIZE = 112
FORWARD = "forward_features"  # the layer's name where it is what timm's function of that name returns
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Trunk:
    """A network with weights, and how its map is read."""

    network: nn.Module
    transform: Transform
    weights: str  # their name
    pretraining: str  # what the weights saw: "imagenet1k", "demo", "nothing" or "unknown"
    layer: str  # module whose output is the map, or FORWARD
    last_axis: bool = False  # maps are (B,h,w,D), not (B,D,h,w)
    prefix: int = 0  # class and register tokens in front of the patches' tokens
    class_token: bool = False  # the first of them is the class token
    patch: int = 1  # the image side is a multiple of it
    resize: Callable[[int], None] | None = None  # makes the network take another image side

    def to_map(self, output: Tensor) -> Tensor:
        """A layer's output as (B,D,h,w): from (B,D,h,w), (B,h,w,D), or tokens (B,prefix+h*w,D).

        Raises:
            ValueError: it is no map.
        """
        if output.ndim == 4:
            maps = output.permute(0, 3, 1, 2) if self.last_axis else output
            if maps.shape[2] != maps.shape[3]:  # of other axes than the last map's, or no grid at all
                raise ValueError(f"an output of shape {tuple(output.shape)} is no square grid of regions")
            return maps
        if output.ndim != 3:
            raise ValueError(f"an output of shape {tuple(output.shape)} has no regions")
        patches = output[:, self.prefix :]  # (B,R,D)
        side = math.isqrt(patches.shape[1])
        if side * side != patches.shape[1]:
            raise ValueError(f"{patches.shape[1]} tokens are no square grid")
        return patches.transpose(1, 2).unflatten(2, (side, side))


Builder = Callable[[str | None], Trunk]
BUILDERS: dict[str, Builder] = {}


def backbone(name: str) -> Callable[[Builder], Builder]:
    """Register ``build(weights) -> Trunk`` as the backbone of that name (docs/adding.md).

    Raises:
        UserError: the name is taken.
    """

    def register(build: Builder) -> Builder:
        known = BUILDERS.get(name)
        if known is not None and (known.__module__, known.__qualname__) != (build.__module__, build.__qualname__):
            raise UserError(f"two backbones are named {name!r}: one in {known.__module__}, one in {build.__module__}")
        BUILDERS[name] = build
        return build

    return register


def build_trunk(name: str, weights: str | None) -> Trunk:
    """The named network with its weights, at the image side that it was made for.

    Raises:
        UserError: unknown names, unreadable files, keys or shapes that do not fit.
    """
    if weights is not None and is_weights_file(weights) and not Path(weights).is_file():
        raise UserError(missing(weights, "weights file"))
    if name in BUILDERS:
        return BUILDERS[name](weights)
    return _timm(name.removeprefix(TIMM), weights) if name.startswith(TIMM) else _torchvision(name, weights)


@backbone(DEMO)
def _demo(weights: str | None) -> Trunk:
    with seeded_weights():
        network: nn.Module = importlib.import_module("core.demo.backbone").DemoBackbone()
    if weights is not None and is_weights_file(weights):
        load_weights(network, Path(weights))
    elif weights != RANDOM:
        raise UserError("the demo backbone needs --weights <file>.safetensors (or random)")
    transform = Transform(DEMO_SIZE, DEMO_SIZE, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))  # it normalises itself
    saw = "nothing" if weights == RANDOM else "demo"
    return Trunk(network=network, transform=transform, weights=_shown(weights), pretraining=saw, layer="body")


def _torchvision(name: str, weights: str | None) -> Trunk:
    import torchvision  # takes seconds, which nothing else in this module needs
    from torchvision.models.vision_transformer import VisionTransformer

    models = torchvision.models.list_models(module=torchvision.models)
    if name not in models:
        near = [m for m in models if m[:4] == name[:4]]
        raise UserError(
            f"no backbone {name!r} in torchvision {torchvision.__version__}; "
            + (f"near it: {', '.join(near)}" if near else "try resnet101, vit_b_16, swin_t, or timm:NAME")
        )
    known, usual = _known_weights(name)
    weights = weights or usual.name
    is_file = is_weights_file(weights)
    if weights not in known and not is_file and weights != RANDOM:
        raise UserError(
            f"no weights {weights!r} for {name}: choose {', '.join(known)}, random, or a file ending in .safetensors, "
            ".pth, .pt, .pth.tar, .ckpt or .bin"
        )
    path = Path(weights) if is_file else None
    if weights in known:
        path = fetch_cached(known[weights].url)
    entry = known.get(weights, usual)
    transform = _preset(entry.transforms(), whole=weights not in known or weights == DEFAULT_WEIGHTS)
    with seeded_weights():
        network = torchvision.models.get_model(name, weights=None, **_arguments(name))
    patch, resize = 1, None
    if isinstance(network, VisionTransformer):
        patch = network.patch_size
        resize = _vit_resizer(network)
        side = _vit_side(network, read_state(path, not is_file)) if path else transform.crop
        resize(side)
        transform = transform.at(side)
    if path is not None:
        load_weights(network, path, known=not is_file)
    family: dict[str, Any] = {"layer": "encoder", "prefix": 1, "class_token": True}
    if patch == 1:
        family = {"layer": last_map(network, transform.crop)}
    if name.startswith("swin"):
        family = {"layer": "norm", "last_axis": True}
    clean = weights in known and weights.startswith("IMAGENET1K_V")  # SWAG's saw Instagram
    saw = "imagenet1k" if clean else "nothing" if weights == RANDOM else "unknown"
    return Trunk(
        network=network, transform=transform, weights=_shown(weights), pretraining=saw, patch=patch, resize=resize,
        **family,
    )  # fmt: skip


def _known_weights(name: str) -> tuple[dict[str, Any], Any]:
    """torchvision's weights of a network by name, and those that are taken where none are named."""
    import torchvision

    known = {w.name: w for w in torchvision.models.get_model_weights(name)}
    return known, known.get(DEFAULT_WEIGHTS) or next(iter(known.values()))


def _preset(preset: Any, whole: bool) -> Transform:
    """torchvision's transform of some weights; ``whole``: its resize is the crop, so that the shorter side is kept.

    That is the protocol of DAZLE and its relatives, who resize to 224 where IMAGENET1K_V1's own preset resizes to 256.
    """
    crop = preset.crop_size[0]
    resize = crop if whole else preset.resize_size[0]
    return Transform(crop, resize, preset.interpolation.value, tuple(preset.mean), tuple(preset.std))


def _arguments(name: str) -> dict[str, bool]:
    """The arguments with which torchvision builds a network that is to take its ImageNet weights."""
    return {"transform_input": True, "init_weights": False} if name in ("inception_v3", "googlenet") else {}


def _vit_resizer(network: Any) -> Callable[[int], None]:
    """Sets the image side of torchvision's ViT, its position embeddings interpolated as torchvision does."""
    from torchvision.models.vision_transformer import interpolate_embeddings

    def resize(size: int) -> None:
        state = {"encoder.pos_embedding": network.encoder.pos_embedding.detach()}
        table = interpolate_embeddings(size, network.patch_size, state)["encoder.pos_embedding"]  # type: ignore[arg-type]
        network.encoder.pos_embedding = nn.Parameter(table, requires_grad=False)
        network.image_size, network.seq_length = size, table.shape[1]

    return resize


def _vit_side(network: Any, state: Mapping[str, Tensor]) -> int:
    """The image side a weights file was made for, as its position embeddings tell; the network's if they do not."""
    table = fit_keys(network, state).get("encoder.pos_embedding")
    if table is None or table.ndim != 3:
        return int(network.image_size)
    side = math.isqrt(table.shape[1] - 1)
    fits = side * side == table.shape[1] - 1 and side > 0
    return side * int(network.patch_size) if fits else int(network.image_size)


def _timm(name: str, weights: str | None) -> Trunk:
    timm, data = (library(module, f"--backbone {TIMM}{name}", "timm") for module in ("timm", "timm.data"))
    weights = weights or "pretrained"
    is_file = is_weights_file(weights)
    if not is_file and weights not in ("pretrained", RANDOM):
        raise UserError(f"--weights {weights}: for timm models choose pretrained, random, or a weights file")
    if not timm.is_model(name):
        near = timm.list_models(f"*{name.split('.')[0][:12]}*")[:12]
        raise UserError(
            f"no backbone {name!r} in timm {timm.__version__}; "
            + (f"near it: {', '.join(near)}" if near else "timm.list_models() names them")
        )
    try:
        with seeded_weights():
            network = timm.create_model(name, pretrained=weights == "pretrained", num_classes=0)
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
    # as timm computes it
    resize = max(height, math.floor(height / config["crop_pct"]))
    transform = Transform(height, resize, config["interpolation"], tuple(config["mean"]), tuple(config["std"]))
    embed = getattr(network, "patch_embed", None)
    patch = getattr(embed, "patch_size", None)
    set_size = getattr(network, "set_input_size", None)
    takes = callable(set_size) and "img_size" in inspect.signature(set_size).parameters
    return Trunk(
        network=network,
        transform=transform,
        weights=_shown(weights),
        pretraining="nothing" if weights == RANDOM else "unknown",
        layer=FORWARD,
        last_axis=getattr(network, "output_fmt", "") == "NHWC",
        # models that do not say it have their class token in front, where they have one (CaiT up to timm 1.0.28)
        prefix=getattr(network, "num_prefix_tokens", int(hasattr(network, "cls_token"))) or 0,
        class_token=getattr(network, "cls_token", None) is not None,  # CaiT's too; registers come after it
        patch=patch[0] if isinstance(patch, tuple) else 1,
        resize=(lambda size: network.set_input_size(img_size=(size, size))) if takes else None,
    )


def own_size(name: str) -> int:
    """Image side that a backbone was made for, without building it; 224 where that is not known."""
    if name in BUILDERS:
        return DEMO_SIZE if name == DEMO else BUILDERS[name](RANDOM).transform.crop
    if name.startswith(TIMM):
        try:
            config = importlib.import_module("timm").get_pretrained_cfg(name.removeprefix(TIMM))
            return int(config.input_size[1]) if config else 224
        except (ImportError, RuntimeError):
            return 224
    if name.startswith(OPEN_CLIP):
        try:
            config = importlib.import_module("open_clip").get_model_config(name.removeprefix(OPEN_CLIP).split("/")[0])
            return int(config["vision_cfg"]["image_size"])
        except (ImportError, KeyError, TypeError):
            return 224
    import torchvision

    if name not in torchvision.models.list_models(module=torchvision.models):
        return 224
    return int(_known_weights(name)[1].transforms().crop_size[0])


def _shown(weights: str | None) -> str:
    return Path(weights).name if weights and is_weights_file(weights) else str(weights)


@contextlib.contextmanager
def seeded_weights() -> Iterator[None]:
    """Initial weights that are always the same, and leave the caller's random numbers alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_SEED)
        yield


def spatial_outputs(network: nn.Module, size: int) -> dict[str, tuple[int, ...]]:
    """Shape (1,D,h,w) of every module's output that has regions, as they are computed, the head's left out."""
    seen: dict[str, tuple[int, ...]] = {}
    names = {module: name for name, module in network.named_modules()}

    def note(module: nn.Module, inputs: Any, output: Any) -> None:
        name = names[module]
        if name.split(".")[0] in HEADS or isinstance(module, nn.AdaptiveAvgPool2d):
            return
        if isinstance(output, Tensor) and output.ndim == 4 and output.shape[2] > 1:
            seen.pop(name, None)
            seen[name] = tuple(output.shape)

    handles = [module.register_forward_hook(note) for module in names]
    training = network.training
    try:
        with torch.inference_mode():
            network.eval()(torch.zeros(1, 3, size, size))
    finally:
        network.train(training)
        for handle in handles:
            handle.remove()
    return seen


def last_map(network: nn.Module, size: int) -> str:
    """Name of the last module with a spatial output before the classifier; adaptive pooling does not count."""
    seen = spatial_outputs(network, size)
    seen.pop("", None)
    if not seen:
        raise UserError("this network has no spatial output; choose one such as resnet101 or vit_b_16")
    return next(reversed(seen))
