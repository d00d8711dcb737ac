"""Fine-tune a backbone on images of seen classes: a linear head on the mean of its regions, cross-entropy, AdamW.

No image is opened but those of the given rows: for validation features those of the validation fold's training classes,
for the final ones trainval. A tenth of them, of every class, is not trained on and decides when to stop. The weights
file names its rows: features made with it are refused where they would be measured on these images or their classes.
"""

import hashlib
import json
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor
from torch.nn import functional as F

from core.datasets.metadata import Metadata
from core.datasets.registry import DataSet
from core.features.backbones import Backbone, build_backbone
from core.features.devices import NAMES, resolve_device
from core.features.extraction import decoded, threads_of
from core.features.images import Normaliser
from core.features.trunks import OPEN_CLIP, TIMM
from core.features.weights import HEADS, KEY, finetuned_record, pack_rows
from core.fields import hp
from core.files.atomic import Lock, write_bytes
from core.files.errors import UserError

HELD_OUT = 0.1  # share of each class's images that early stopping watches
MARGIN = 8 / 7  # side of the picture that a crop is cut from, in crops: 256 for 224 pixels
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """Everything that decides the weights but the images."""

    backbone: str = hp("resnet101", "torchvision classifier or timm:NAME")
    weights: str | None = hp(None, "what to begin with: a weights file, or a name as for the extraction")
    input_size: int | None = hp(None, "image side in pixels; none: what the backbone was made for", at_least=32)
    epochs: int = hp(20, "most epochs; the learning rate falls to 0 over them by a cosine", at_least=1)
    patience: int = hp(4, "epochs without a better accuracy on held-out images before it stops", at_least=1)
    lr: float = hp(1e-4, "learning rate of the backbone; its new head has ten times that", above=0)
    weight_decay: float = hp(1e-4, "weight decay", flag=False)
    batch_size: int = hp(32, "images a step", at_least=1)
    dtype: str = hp("float32", "of the products; weights are float32", choices=("float32", "bfloat16"))
    device: str = hp("auto", NAMES)
    seed: int = hp(0, "of order, crops and the held-out images", flag=False)


def finetune(
    dataset: DataSet, metadata: Metadata, rows: np.ndarray, *, paths: Sequence[Path], fold: str, out: Path,
    config: FinetuneConfig,
) -> Path:  # fmt: skip
    """Fine-tune on the images in ``rows``, a part of which stops it. A finished file of these settings is the result.

    Args: paths: (N,) of all images; fold: what the rows are, for the record: split<k>_val or final.
    """
    labels, rows, size = metadata.labels, np.sort(rows), config.input_size
    if config.backbone.startswith(OPEN_CLIP) or (config.backbone.startswith(TIMM) and size is not None):
        raise UserError("fine-tuned are networks of torchvision, and of timm without --input-size, at their own size")
    backbone = build_backbone(config.backbone, config.weights, input_size=size)
    settings = {k: v for k, v in asdict(config).items() if k != "device"} | {"weights": backbone.weights}
    record = {
        "dataset": dataset.source,
        "fold": fold,
        "split_sha256": metadata.split_sha256,
        "saw_unseen": backbone.saw_unseen(dataset, [metadata.class_names[c] for c in metadata.unseen]),
        "rows": pack_rows(rows, len(labels)),
        "labels_sha256": hashlib.sha256(np.ascontiguousarray(labels[rows]).tobytes()).hexdigest(),
        "base_sha256": backbone.sha256,
        "settings": json.dumps(settings, sort_keys=True),
    }
    if out.exists():
        known = finetuned_record(out)
        if differ := [key for key in record if known.get(key) != record[key]]:
            raise UserError(f"{out} was made with other {', '.join(differ)}; move it away, or delete it")
        return out
    with Lock(out):
        tensors, epoch, accuracy = _Run(backbone, paths, labels, rows, config).train()
        record |= {"epoch": str(epoch), "held_out_accuracy": f"{accuracy:.4f}"}
        write_bytes(out, save(tensors, metadata={KEY: json.dumps(record, sort_keys=True)}))
    return out


class _Run:
    """One fine-tuning: network, head and optimizer."""

    def __init__(
        self, backbone: Backbone, paths: Sequence[Path], labels: np.ndarray, rows: np.ndarray, config: FinetuneConfig
    ) -> None:
        self.backbone, self.paths, self.config = backbone, paths, config
        classes, number = np.unique(labels[rows], return_inverse=True)
        self.number = np.full(len(labels), -1)
        self.number[rows] = number
        self.train_rows, self.held_rows = held_out(rows, number, config.seed)
        self.device = resolve_device(config.device)
        # its normalisation keeps the statistics of pretraining, so that small batches do not disturb them
        self.network = backbone.network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        trained = [p for n, p in self.network.named_parameters() if n.split(".")[0] not in HEADS]
        for parameter in trained:
            parameter.requires_grad_(True)
        shapes = (len(classes), backbone.shape[0]), (len(classes),)  # (S,D) and (S,)
        self.head = [torch.zeros(shape, device=self.device, requires_grad=True) for shape in shapes]
        # the head starts from nothing, so it learns faster
        groups = [{"params": trained, "factor": 1}, {"params": self.head, "factor": 10}]
        self.optimizer = torch.optim.AdamW(groups, lr=config.lr, weight_decay=config.weight_decay)
        self.normalise = Normaliser(self.device, torch.float32, backbone.transform)

    def logits(self, images: Tensor) -> Tensor:
        """(B,S) scores of the classes fine-tuned on, for normalised images (B,3,H,W)."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.dtype == "bfloat16"):
            maps = self.backbone.maps(images)  # (B,D,h,w)
            scores = F.linear(maps.mean(dim=(2, 3)), *self.head)
        return scores.float()

    def train(self) -> tuple[dict[str, Tensor], int, float]:
        """Weights, number (from 1) and held-out accuracy of the best epoch; ends when none gets better."""
        c, best, best_epoch, best_accuracy = self.config, dict[str, Tensor](), 0, -1.0
        steps = -(-len(self.train_rows) // c.batch_size)
        for epoch in range(c.epochs):
            total = torch.zeros((), device=self.device)
            generator = np.random.default_rng((c.seed, epoch))
            for step, (x, y) in enumerate(self._batches(self.train_rows, generator)):
                share = (epoch + step / steps) / c.epochs
                for group in self.optimizer.param_groups:
                    group["lr"] = c.lr * group["factor"] * (1 + math.cos(math.pi * share)) / 2
                self.optimizer.zero_grad(set_to_none=True)
                loss = F.cross_entropy(self.logits(x), y)
                loss.backward()
                self.optimizer.step()
                total += loss.detach()
            if not math.isfinite(mean := float(total) / steps):
                raise UserError(f"the loss is {mean}: fine-tuning diverged; try a lower --lr")
            accuracy = self._accuracy()
            _log.info("epoch %d: loss %.4f, accuracy on held-out images %.1f", epoch + 1, mean, 100 * accuracy)
            if accuracy > best_accuracy:
                best, best_epoch, best_accuracy = self._trunk(), epoch + 1, accuracy
            elif epoch + 1 - best_epoch >= c.patience:
                break
        return best, best_epoch, best_accuracy

    def _trunk(self) -> dict[str, Tensor]:
        state = self.network.state_dict()
        return {k: v.detach().cpu().clone().contiguous() for k, v in state.items() if k.split(".")[0] not in HEADS}

    @torch.no_grad()
    def _accuracy(self) -> float:
        """Mean over classes of the accuracy on the held-out images."""
        found = [(self.logits(x).argmax(1).cpu(), y.cpu()) for x, y in self._batches(self.held_rows)]
        predicted, true = (torch.cat(some).numpy() for some in zip(*found, strict=True))  # (B,)
        return float(np.mean([(predicted[true == c] == c).mean() for c in np.unique(true)]))

    def _batches(self, rows: np.ndarray, generator: Any = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Normalised images (B,3,H,W) and class numbers (B,); with numpy's generator shuffled, cropped and mirrored."""
        how, size = self.backbone.transform, self.config.batch_size
        if generator is not None:
            side, whole = how.crop, round(how.crop * MARGIN)
            rows, how = generator.permutation(rows), replace(how, crop=whole, resize=whole)
            corners = generator.integers(0, whole - side + 1, (len(rows), 2))
            mirrored = generator.random(len(rows)) < 0.5
        images = [self.paths[row] for row in rows]
        parts = [np.arange(start, min(start + size, len(rows))) for start in range(0, len(rows), size)]
        for part, x, bad in decoded(parts, images, how, False, threads_of(None)):  # x (B,H,W,3)
            for i, why in bad.items():
                raise UserError(f"{images[part[i]]} could not be read: {why}. Replace it and run again")
            if generator is not None:
                cuts = [x[i, top : top + side, left : left + side] for i, (top, left) in enumerate(corners[part])]
                x = torch.stack([c.flip(1) if mirrored[k] else c for c, k in zip(cuts, part, strict=True)])
            yield self.normalise(x), torch.from_numpy(self.number[rows[part]]).to(self.device)


def held_out(rows: np.ndarray, number: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on, and a tenth of every class (at least one; of single images none) for early stopping."""
    generator, held = np.random.default_rng(seed), []
    for c in np.unique(number):
        own = generator.permutation(rows[number == c])
        held.append(own[: min(len(own) - 1, max(1, round(HELD_OUT * len(own))))])
    chosen = np.sort(np.concatenate(held))
    return np.setdiff1d(rows, chosen), chosen
