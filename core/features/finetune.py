"""Fine-tune a backbone on images of seen classes: a linear head on the mean of its regions, cross-entropy, AdamW.

The caller names the images (rows) that may be used, and no other is opened: for validation features those of the
validation fold's training classes, for the final ones trainval. A tenth of them, of every class, is not trained on and
decides when to stop. The weights file names its rows, so that features made with it are refused where they would be
measured on a class, or an image, that the backbone was fine-tuned on.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from core.datasets.metadata import Metadata
from core.datasets.registry import DataSet
from core.features.backbones import Backbone, build_backbone, file_form
from core.features.devices import resolve_device
from core.features.finetuned import KEY, finetuned_record, pack_rows
from core.features.images import Normaliser, load_image
from core.features.regions import ahead
from core.features.settings import FINETUNED
from core.features.trunks import OPEN_CLIP, TIMM, own_size
from core.features.weights import HEADS
from core.files.atomic import Lock, atomic_path, write_bytes
from core.files.errors import UserError

DTYPES = {"float32": None, "bfloat16": torch.bfloat16}
HELD_OUT = 0.1  # share of each class's images that early stopping watches
MARGIN = 8 / 7  # side of the picture that a crop is cut from, in crops: 256 for 224 pixels
REMARK = "saw_unseen"  # in the record, but it does not decide the weights
_HEAD_RATE = 10  # the head starts from nothing, so it learns faster by that factor
_AHEAD = 3  # batches decoded ahead
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """Everything that decides the weights but the images."""

    backbone: str = "resnet101"
    weights: str | None = None
    input_size: int | None = None  # image side in pixels; None: what the backbone was made for
    epochs: int = 20  # most of them
    patience: int = 4  # epochs without a better accuracy on the held-out images, after which it stops
    lr: float = 1e-4  # of the backbone, falling to 0 over ``epochs`` by a cosine
    weight_decay: float = 1e-4
    batch_size: int = 32
    dtype: str = "float32"  # of the products; weights are float32
    device: str = "auto"
    seed: int = 0
    pretraining_saw_unseen: str | None = None  # what a user says of own weights: no, unknown, yes


def weights_name(backbone: str, fold: str) -> str:
    """finetuned_<backbone>_<fold>.safetensors, the fold being split<k>_val or final."""
    return f"{FINETUNED}{file_form(backbone)}_{fold}.safetensors"


def finetune(
    dataset: DataSet,
    metadata: Metadata,
    rows: np.ndarray,
    *,
    paths: Sequence[Path],
    fold: str,
    out: Path,
    config: FinetuneConfig,
    workers: int = 4,
) -> Path:
    """Fine-tune on the images in ``rows``, or go on where an interrupted run of the same settings stopped.

    Args:
        rows: images that may be used, for training and for early stopping.
        paths: (N,) of all images; only those in ``rows`` are looked at.
        fold: what the rows are, for the record: split<k>_val or final.
        out: the weights file; the state of an unfinished run is kept beside it.
    """
    labels = metadata.labels
    rows = np.sort(rows)
    if missing := [paths[r] for r in rows.tolist() if not paths[r].is_file()]:
        raise UserError(f"{len(missing)} of the {len(rows)} images to fine-tune on are missing, first {missing[0]}")
    if config.backbone.startswith(OPEN_CLIP):
        raise UserError(f"{config.backbone} gives image embeddings, which are not fine-tuned; try timm:NAME")
    backbone = build_backbone(config.backbone, config.weights, input_size=config.input_size)
    own = own_size(config.backbone)
    if config.backbone.startswith(TIMM) and backbone.input_size != own:
        raise UserError(
            f"--input-size {config.input_size}: a timm model is fine-tuned at its own {own} pixels, since its weights "
            "file is read back at that size"
        )
    unseen = [metadata.class_names[c] for c in metadata.unseen]
    settings = {k: v for k, v in asdict(config).items() if k != "device"} | {"weights": backbone.weights}
    record = {
        "dataset": dataset.source,
        "fold": fold,
        "split_sha256": metadata.split_sha256,
        "saw_unseen": backbone.saw_unseen(dataset, unseen, config.pretraining_saw_unseen),
        "rows": pack_rows(rows, len(labels)),
        "labels_sha256": hashlib.sha256(np.ascontiguousarray(labels[rows]).tobytes()).hexdigest(),
        "base_sha256": backbone.sha256,
        "settings": json.dumps(settings, sort_keys=True),
    }
    if out.exists():
        known = finetuned_record(out)
        differ = [key for key in record if key != REMARK and known.get(key) != record[key]]
        if differ:
            raise UserError(f"{out} was made with other {', '.join(differ)}; delete it, or choose another --out")
        _log.info("%s is complete already", out)
        return out
    out.parent.mkdir(parents=True, exist_ok=True)
    with Lock(out):
        run = _Run(backbone, paths, labels, rows, config, workers)
        state = out.with_name(out.name + ".state")
        run.restore(state, record)
        run.train(lambda: run.store(state, record))
        tensors = {key: value.contiguous() for key, value in run.best.items()}
        record["epoch"], record["held_out_accuracy"] = str(run.best_epoch), f"{run.best_accuracy:.4f}"
        write_bytes(out, save(tensors, metadata={KEY: json.dumps(record, sort_keys=True)}))
        state.unlink(missing_ok=True)
    return out


class _Run:
    """One fine-tuning: network, head, optimizer, and what has been reached."""

    def __init__(
        self, backbone: Backbone, paths: Sequence[Path], labels: np.ndarray, rows: np.ndarray, config: FinetuneConfig,
        workers: int,
    ) -> None:  # fmt: skip
        self.backbone, self.paths, self.config, self.workers = backbone, paths, config, workers
        classes, number = np.unique(labels[rows], return_inverse=True)
        self.number = np.full(len(labels), -1)
        self.number[rows] = number
        self.train_rows, self.held_rows = held_out(rows, number, config.seed)
        self.device = resolve_device(config.device)
        # its normalisation keeps the statistics of pretraining, so that small batches do not disturb them
        self.network = backbone.network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.trained = {n: p for n, p in self.network.named_parameters() if n.split(".")[0] not in HEADS}
        for parameter in self.trained.values():
            parameter.requires_grad_(True)
        self.head = nn.utils.skip_init(nn.Linear, backbone.shape[0], len(classes)).to(self.device)
        for parameter in self.head.parameters():
            nn.init.zeros_(parameter)
        groups = [
            {"params": list(self.trained.values()), "lr": config.lr, "factor": 1},
            {"params": list(self.head.parameters()), "lr": config.lr, "factor": _HEAD_RATE},
        ]
        self.optimizer = torch.optim.AdamW(groups, weight_decay=config.weight_decay)
        how = backbone.transform
        self.normalise = Normaliser(self.device, torch.float32, how.mean, how.std)
        self.epoch, self.best_epoch, self.best_accuracy = 0, 0, -1.0
        self.best: dict[str, Tensor] = {}

    def logits(self, images: Tensor) -> Tensor:
        """(B,S) scores of the classes fine-tuned on, for normalised images (B,3,H,W)."""
        dtype = DTYPES[self.config.dtype]
        with torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None):
            maps = self.backbone.maps(images)  # (B,D,h,w)
            scores: Tensor = self.head(maps.mean(dim=(2, 3)))
        return scores.float()

    def train(self, after_epoch: Callable[[], None]) -> None:
        """All epochs that are left, until the held-out accuracy no longer rises."""
        c = self.config
        steps = -(-len(self.train_rows) // c.batch_size)
        with tqdm(total=c.epochs, initial=self.epoch, desc="fine-tuning", unit="epoch", disable=None) as bar:
            while self.epoch < c.epochs and self.epoch - self.best_epoch < c.patience:
                total = torch.zeros((), device=self.device)
                for step, (x, y) in enumerate(self._training_batches()):
                    share = (self.epoch + step / steps) / c.epochs
                    for group in self.optimizer.param_groups:
                        group["lr"] = c.lr * group["factor"] * (1 + math.cos(math.pi * share)) / 2
                    self.optimizer.zero_grad(set_to_none=True)
                    loss = F.cross_entropy(self.logits(x), y)
                    loss.backward()
                    self.optimizer.step()
                    total += loss.detach()
                if not math.isfinite(mean := float(total) / steps):
                    raise UserError(f"the loss is {mean}: fine-tuning diverged; try a lower --lr")
                self.epoch += 1
                accuracy = self._accuracy()
                if accuracy > self.best_accuracy:
                    self.best_epoch, self.best_accuracy, self.best = self.epoch, accuracy, self._trunk()
                _log.info(
                    "epoch %d of %d: loss %.4f, accuracy on held-out images of seen classes %.1f",
                    self.epoch, c.epochs, mean, 100 * accuracy,
                )  # fmt: skip
                after_epoch()
                bar.update()

    def _trunk(self) -> dict[str, Tensor]:
        state = self.network.state_dict()
        return {k: v.detach().cpu().clone() for k, v in state.items() if k.split(".")[0] not in HEADS}

    @torch.no_grad()
    def _accuracy(self) -> float:
        """Mean over classes of the accuracy on the held-out images."""
        how, size = self.backbone.transform, self.config.batch_size
        batches = [self.held_rows[s : s + size] for s in range(0, len(self.held_rows), size)]

        def load(row: int) -> np.ndarray:
            return load_image(self.paths[row], how.crop, how.resize, how.interpolation)

        predicted = [self.logits(self.normalise(x)).argmax(1).cpu() for _, x in self._decoded(batches, load)]
        right = (torch.cat(predicted).numpy() == self.number[self.held_rows]).astype(float)
        of = self.number[self.held_rows]
        return float((np.bincount(of, right) / np.maximum(np.bincount(of), 1))[np.unique(of)].mean())

    def _training_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Normalised crops (B,3,H,W) and class numbers (B,) of one epoch; half of them mirrored."""
        how, size = self.backbone.transform, self.config.batch_size
        # an own generator an epoch: a run that goes on draws what it would have drawn
        generator = np.random.default_rng((self.config.seed, self.epoch))
        order = generator.permutation(self.train_rows)
        whole = round(how.crop * MARGIN)
        at = dict(zip(order.tolist(), generator.integers(0, whole - how.crop + 1, (len(order), 2)), strict=True))
        mirrored = dict(zip(order.tolist(), generator.random(len(order)) < 0.5, strict=True))

        def load(row: int) -> np.ndarray:
            (top, left), crop = at[row], how.crop
            image = load_image(self.paths[row], whole, whole, how.interpolation)[top : top + crop, left : left + crop]
            return image[:, ::-1] if mirrored[row] else image

        for rows, x in self._decoded([order[s : s + size] for s in range(0, len(order), size)], load):
            yield self.normalise(x), torch.from_numpy(self.number[rows]).to(self.device)

    def _decoded(
        self, batches: list[np.ndarray], load: Callable[[int], np.ndarray]
    ) -> Iterator[tuple[np.ndarray, Tensor]]:
        """Rows and pixels (B,H,W,3) uint8 of each batch, some batches decoded ahead."""

        def pixels(row: int) -> np.ndarray:
            try:
                return load(row)
            except ValueError as error:
                raise UserError(f"{self.paths[row]} could not be read: {error}. Replace it and run again") from error

        with ThreadPoolExecutor(self.workers) as pool:
            begun = ahead(lambda rows: [pool.submit(pixels, row) for row in rows.tolist()], batches, _AHEAD)
            for rows, jobs in zip(batches, begun, strict=True):
                yield rows, torch.from_numpy(np.stack([job.result() for job in jobs]))

    def store(self, path: Path, record: Mapping[str, str]) -> None:
        """Write what a later call goes on from."""
        state = {
            "record": dict(record),
            "epoch": self.epoch,
            "best": [self.best_epoch, self.best_accuracy],
            "best_weights": self.best,
            "network": self._trunk(),
            "head": self.head.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        with atomic_path(path) as temporary:
            torch.save(state, temporary)

    def restore(self, path: Path, record: Mapping[str, str]) -> None:
        """Go on from a state file, if there is one."""
        if not path.exists():
            return
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            differ = [key for key in record if key != REMARK and state["record"].get(key) != record[key]]
            if not differ:
                self.network.load_state_dict(state["network"], strict=False)
                self.head.load_state_dict(state["head"])
                self.optimizer.load_state_dict(state["optimizer"])
                self.epoch, self.best = state["epoch"], state["best_weights"]
                self.best_epoch, self.best_accuracy = state["best"]
        except Exception as error:  # a damaged file raises nearly anything
            raise UserError(f"{path} is damaged ({type(error).__name__}); delete it to start anew") from error
        if differ:
            raise UserError(f"{path} is of a run with other {', '.join(differ)}; delete it to start anew")


def held_out(rows: np.ndarray, number: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on, and a tenth of every class (at least one; of single images none) for early stopping."""
    generator, held = np.random.default_rng(seed), []
    for c in np.unique(number):
        own = generator.permutation(rows[number == c])
        held.append(own[: min(len(own) - 1, max(1, round(HELD_OUT * len(own))))])
    chosen = np.sort(np.concatenate(held))
    if not len(chosen):
        raise UserError("every class has one image alone, so none can be held out for early stopping")
    return np.setdiff1d(rows, chosen), chosen
