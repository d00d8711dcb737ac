"""CLIP models of open_clip: an image tower whose features are the image's embedding, and the text tower beside it.

A. Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021. Both towers end
in unit vectors of one space (E numbers), and an image is of the class whose text is nearest. Its features here are one
region of E channels, the embedding itself. For patches of an image tower take timm's: timm:vit_base_patch16_clip_224.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.features.images import Transform
from core.features.trunks import FORWARD, OPEN_CLIP, RANDOM, Trunk, seeded_weights
from core.features.weights import is_weights_file, read_state, state_sha256
from core.files.atomic import sha256_file
from core.files.errors import UserError, first_line, library

_TEXTS = 256  # encoded at once
_BUFFERS = ("position_ids", "attn_mask")  # of older versions' files; they hold no numbers that were learned
_log = logging.getLogger(__name__)


class ClipImages(nn.Module):
    """A CLIP model that answers an image with its embedding."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward_features(self, images: Tensor) -> Tensor:
        """(B,3,H,W) normalised images to unit embeddings (B,E,1,1)."""
        encode: Any = self.model.encode_image
        embedding: Tensor = F.normalize(encode(images).float(), dim=1)
        return embedding.to(images.dtype)[:, :, None, None]

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_features(images)


@dataclass(frozen=True, kw_only=True)
class Clip:
    """Both towers with one set of weights."""

    name: str  # open_clip:MODEL/PRETRAINED
    images: ClipImages
    transform: Transform
    tokenize: Callable[[list[str]], Tensor]
    weights: str  # their name
    sha256: str

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Unit embeddings (n,E) float32 of texts; what is longer than the model reads (77 tokens) is cut by it."""
        encode: Any = self.images.model.encode_text
        parts = [texts[start : start + _TEXTS] for start in range(0, len(texts), _TEXTS)]
        rows = [F.normalize(encode(self.tokenize(list(part))).float(), dim=1) for part in parts]
        return torch.cat(rows).numpy()


def load_clip(name: str, weights: str | None = None) -> Clip:
    """A model of open_clip in evaluation mode.

    Args:
        name: open_clip:MODEL/PRETRAINED, as open_clip.list_pretrained() has them; PRETRAINED may be random.
        weights: a weights file of that model (whose activations and transform are PRETRAINED's), or random; None:
            PRETRAINED's, downloaded by open_clip once.

    Raises:
        UserError: open_clip is not installed, no such model, a failed download, or a file that does not fit.
    """
    open_clip = library("open_clip", name, "open_clip_torch")
    model_name, _, tag = name.removeprefix(OPEN_CLIP).partition("/")
    tags = open_clip.list_pretrained_tags_by_model(model_name) if open_clip.get_model_config(model_name) else []
    if open_clip.get_model_config(model_name) is None:
        near = [m for m in open_clip.list_models() if m[:5].lower() == model_name[:5].lower()]
        raise UserError(
            f"no model {model_name!r} in open_clip {open_clip.__version__}; try {', '.join(near) or 'ViT-B-16'}"
        )
    if tag not in (*tags, RANDOM):
        raise UserError(
            f"{name}: name the weights too, {OPEN_CLIP}{model_name}/PRETRAINED with one of {', '.join([*tags, RANDOM])}"
        )
    weights = weights or (RANDOM if tag == RANDOM else None)
    if weights not in (None, RANDOM) and not is_weights_file(str(weights)):
        raise UserError(f"--weights {weights}: for open_clip choose random or a weights file")
    of_tag = open_clip.get_pretrained_cfg(model_name, tag) or {}
    preprocess = {k: of_tag[k] for k in ("mean", "std", "interpolation", "resize_mode") if of_tag.get(k)}
    try:
        with seeded_weights(), _quiet():
            model = open_clip.create_model(
                model_name, pretrained=tag if weights is None else None, pretrained_text=False,
                force_quick_gelu=bool(of_tag.get("quick_gelu")), force_preprocess_cfg=preprocess,
            )  # fmt: skip
            tokenizer = open_clip.get_tokenizer(model_name)
    except Exception as error:  # of the hub's client: nearly anything
        raise UserError(
            f"{name} could not be made with its weights ({first_line(error)}). Offline? Download its "
            "open_clip_model.safetensors elsewhere and name it with --weights open_clip_model.safetensors"
        ) from error
    images = ClipImages(model.eval().requires_grad_(False))
    path = Path(weights) if weights and is_weights_file(weights) else None
    if path is not None:
        _fit_file(model, path)
    return Clip(
        name=name,
        images=images,
        transform=_transform(name, model.visual.preprocess_cfg),
        tokenize=tokenizer,
        weights=path.name if path else weights or tag,
        sha256=sha256_file(path) if path else state_sha256(images),
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the ten lines that open_clip logs of a model that it makes; its warnings stay."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.INFO))
    try:
        yield
    finally:
        logging.disable(before)


def _fit_file(model: nn.Module, path: Path) -> None:
    state = read_state(path)
    own = model.state_dict()
    state = {k: v for k, v in state.items() if k in own or k.rsplit(".", 1)[-1] not in _BUFFERS}
    missing = [k for k in own if k not in state and k.rsplit(".", 1)[-1] not in _BUFFERS]
    extra = [k for k in state if k not in own]
    shapes = [k for k in own if k in state and state[k].shape != own[k].shape]
    if missing or extra or shapes:
        found = (("missing", missing), ("unknown", extra), ("of another shape", shapes))
        said = "; ".join(f"{len(keys)} {what} ({', '.join(keys[:3])})" for what, keys in found if keys)
        raise UserError(f"{path} does not fit the model: {said}. Is MODEL the one it was made with?")
    if bad := [k for k, v in state.items() if v.is_floating_point() and not torch.isfinite(v).all()]:
        raise UserError(f"{path}: NaN or infinity in {', '.join(bad[:3])}")
    model.load_state_dict(state, strict=False)


def _transform(name: str, config: dict[str, Any]) -> Transform:
    size = config["size"]
    side = size if isinstance(size, int) else size[0]
    if config.get("resize_mode", "shortest") != "shortest":
        _log.warning(
            "%s was trained on pictures made square (%s); here the shorter side is resized and the middle cropped, as "
            "for every backbone", name, config["resize_mode"],
        )  # fmt: skip
    interpolation = "bicubic" if config["interpolation"] == "random" else config["interpolation"]
    return Transform(side, side, interpolation, tuple(config["mean"]), tuple(config["std"]))


def clip_trunk(name: str, weights: str | None) -> Trunk:
    """The image tower as a backbone.

    Raises:
        UserError: as :func:`load_clip`.
    """
    clip = load_clip(name, weights)
    return Trunk(
        network=clip.images,
        transform=clip.transform,
        weights=clip.weights,
        pretraining="nothing" if clip.weights == RANDOM else "unknown",
        layer=FORWARD,
    )
