"""CLIP models of open_clip: an image tower whose features are the image's embedding, and the text tower beside it.

A. Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021. Both towers end
in unit vectors of one space (E numbers), and an image is of the class whose text is nearest. Its features here are one
region of E channels, the embedding itself; timm:vit_base_patch16_clip_224 gives patches of such an image tower.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.features.images import Transform
from core.features.trunks import OPEN_CLIP, RANDOM, Trunk, build, chosen
from core.features.weights import from_hub, load_weights
from core.files.errors import UserError, library


class Clip(nn.Module):
    """A CLIP model that answers an image with its embedding; ``encode`` gives those of texts."""

    def __init__(self, model: Any, tokenize: Callable[[list[str]], Tensor]) -> None:
        super().__init__()
        self.model, self.tokenize = model, tokenize

    def forward(self, images: Tensor) -> Tensor:
        """(B,3,H,W) normalised images to unit embeddings (B,E,1,1)."""
        embedding: Tensor = F.normalize(self.model.encode_image(images).float(), dim=1)
        return embedding.to(images.dtype)[:, :, None, None]

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Unit embeddings (n,E) float32 of texts; what is longer than the model reads (77 tokens) is cut by it."""
        parts = [self.tokenize(list(texts[start : start + 256])) for start in range(0, len(texts), 256)]
        return torch.cat([F.normalize(self.model.encode_text(part).float(), dim=1) for part in parts]).numpy()


@build(OPEN_CLIP)
def _open_clip(name: str, weights: str | None) -> Trunk:
    """MODEL/PRETRAINED or MODEL/random; a weights file is of that model, activations and transform are PRETRAINED's."""
    with library(f"--backbone {OPEN_CLIP}{name}", "open_clip_torch"):
        import open_clip
    model_name, _, tag = name.partition("/")
    tags = [*open_clip.list_pretrained_tags_by_model(model_name), RANDOM]
    if tag not in tags:
        said = f"of {model_name} it has {', '.join(tags)}, of others those of open_clip.list_pretrained()"
        raise UserError(f"no {name!r} in open_clip (MODEL/PRETRAINED): {said}")
    weights = chosen(f"{OPEN_CLIP}{name}", weights, tag)
    of_tag = open_clip.get_pretrained_cfg(model_name, tag) or {}
    with from_hub(f"{OPEN_CLIP}{name}", "open_clip_model.safetensors"):
        model = open_clip.create_model(
            model_name, pretrained=tag if weights == tag != RANDOM else None, pretrained_text=False,
            force_quick_gelu=bool(of_tag.get("quick_gelu")),
            force_preprocess_cfg={k: of_tag[k] for k in ("mean", "std", "interpolation") if of_tag.get(k)},
        ).eval()  # fmt: skip
        clip = Clip(model, open_clip.get_tokenizer(model_name))
    load_weights(model, weights)
    how = model.visual.preprocess_cfg
    side = how["size"] if isinstance(how["size"], int) else how["size"][0]
    interpolation = "bicubic" if how["interpolation"] == "random" else how["interpolation"]
    return Trunk(
        network=clip,
        transform=Transform(side, side, interpolation, tuple(how["mean"]), tuple(how["std"])),
        weights=weights,
        layer="forward_features",
        encode=clip.encode,
    )
