"""CLIP models of open_clip: an image tower whose features are the image's embedding, and the text tower beside it.

A. Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021. Both towers end
in unit vectors of one space (E numbers), and an image is of the class whose text is nearest. Its features here are one
region of E channels, the embedding itself. For patches of an image tower take timm's: timm:vit_base_patch16_clip_224.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.features.images import Transform
from core.features.weights import is_weights_file, read_state
from core.files.errors import UserError, first_line, library

RANDOM = "random"
_TEXTS = 256  # encoded at once
_BUFFERS = ("position_ids", "attn_mask")  # of older versions' files; they hold no numbers that were learned
_log = logging.getLogger(__name__)


class Clip(nn.Module):
    """A CLIP model that answers an image with its embedding; ``encode`` gives those of texts."""

    def __init__(self, model: nn.Module, tokenize: Callable[[list[str]], Tensor], transform: Transform) -> None:
        super().__init__()
        self.model, self.tokenize, self.transform = model, tokenize, transform

    def forward(self, images: Tensor) -> Tensor:
        """(B,3,H,W) normalised images to unit embeddings (B,E,1,1)."""
        encode: Any = self.model.encode_image
        embedding: Tensor = F.normalize(encode(images).float(), dim=1)
        return embedding.to(images.dtype)[:, :, None, None]

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Unit embeddings (n,E) float32 of texts; what is longer than the model reads (77 tokens) is cut by it."""
        encode: Any = self.model.encode_text
        device = next(self.model.parameters()).device
        parts = [list(texts[start : start + _TEXTS]) for start in range(0, len(texts), _TEXTS)]
        rows = [F.normalize(encode(self.tokenize(part).to(device)).float(), dim=1) for part in parts]
        return torch.cat(rows).cpu().numpy()


def load_clip(name: str, weights: str | None = None) -> tuple[Clip, str]:
    """A model of open_clip in evaluation mode, and the name of its weights.

    Args:
        name: MODEL/PRETRAINED, as open_clip.list_pretrained() has them; PRETRAINED may be random.
        weights: a weights file of that model (whose activations and transform are PRETRAINED's), or random; None or
            PRETRAINED itself: PRETRAINED's, downloaded by open_clip once.
    """
    open_clip = library("open_clip", f"open_clip:{name}", "open_clip_torch")
    model_name, _, tag = name.partition("/")
    if open_clip.get_model_config(model_name) is None:
        near = [m for m in open_clip.list_models() if m[:5].lower() == model_name[:5].lower()][:9]
        raise UserError(f"no model {model_name!r} in open_clip; try {', '.join(near) or 'ViT-B-16'}")
    tags = [*open_clip.list_pretrained_tags_by_model(model_name), RANDOM]
    if tag not in tags:
        raise UserError(f"name the weights too, open_clip:{model_name}/PRETRAINED with one of {', '.join(tags)}")
    weights = weights or tag
    is_file = is_weights_file(weights)
    if weights not in (tag, RANDOM) and not is_file:
        raise UserError(f"--weights {weights}: for open_clip:{name} choose {tag}, random, or a weights file")
    of_tag = open_clip.get_pretrained_cfg(model_name, tag) or {}
    preprocess = {k: of_tag[k] for k in ("mean", "std", "interpolation", "resize_mode") if of_tag.get(k)}
    try:
        model = open_clip.create_model(
            model_name, pretrained=weights if weights != RANDOM and not is_file else None, pretrained_text=False,
            force_quick_gelu=bool(of_tag.get("quick_gelu")), force_preprocess_cfg=preprocess,
        )  # fmt: skip
        tokenizer = open_clip.get_tokenizer(model_name)
    except Exception as error:  # of the hub's client: nearly anything
        raise UserError(
            f"open_clip:{name} could not be made with its weights ({first_line(error)}). Offline? Download its "
            "open_clip_model.safetensors elsewhere and name it with --weights open_clip_model.safetensors"
        ) from error
    if is_file:
        _load(model, Path(weights))
    return Clip(model.eval(), tokenizer, _transform(name, model.visual.preprocess_cfg)), weights


def _load(model: nn.Module, path: Path) -> None:
    state, own = (
        {k: v for k, v in some.items() if k.rsplit(".", 1)[-1] not in _BUFFERS}
        for some in (read_state(path), model.state_dict())
    )
    wrong = sorted(own.keys() ^ state.keys()) + [k for k in own if k in state and state[k].shape != own[k].shape]
    if wrong:
        said = f"{len(wrong)} names or shapes differ, such as {', '.join(wrong[:3])}"
        raise UserError(f"{path} does not fit the model: {said}. Is MODEL the one it was made with?")
    if bad := [k for k, v in state.items() if v.is_floating_point() and not torch.isfinite(v).all()]:
        raise UserError(f"{path}: NaN or infinity in {', '.join(bad[:3])}")
    model.load_state_dict(state, strict=False)


def _transform(name: str, config: dict[str, Any]) -> Transform:
    size = config["size"]
    side = size if isinstance(size, int) else size[0]
    if config.get("resize_mode", "shortest") != "shortest":
        _log.warning(
            "open_clip:%s was trained on pictures made square (%s); here the shorter side is resized and the middle "
            "cropped, as for every backbone", name, config["resize_mode"],
        )  # fmt: skip
    interpolation = "bicubic" if config["interpolation"] == "random" else config["interpolation"]
    return Transform(side, side, interpolation, tuple(config["mean"]), tuple(config["std"]))
