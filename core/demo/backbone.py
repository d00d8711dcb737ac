"""The demo's backbone: a small network whose weights come from nowhere but the demo's own training classes.

It learns those classes and their attributes from the images of the train split, and never opens any other image: the
classes that methods are chosen on (val) are as new to it as the unseen ones, so validation foretells the test.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn
from torch.nn import functional as F

from core.datasets.metadata import Metadata
from core.datasets.paths import image_folder
from core.datasets.registry import DEMO
from core.datasets.xlsa17 import read_metadata
from core.demo.drawing import SIZE
from core.files.atomic import write_bytes
from core.files.errors import UserError

log = logging.getLogger(__name__)

FORMAT = 2  # raise it when the network or its training changes
CHANNELS = 128  # D of the feature map
_LR = 4e-3
_ATTRIBUTE_WEIGHT = 4.0  # of the attributes' BCE beside the classes' cross-entropy
# the maps are so small that threads wait for each other longer than they compute, and one's result is the same anywhere
_THREADS = 1
SHIFT = 8  # pixels, the largest shift of the augmentation


class DemoBackbone(nn.Module):
    """RGB images in [0,1], (B,3,112,112) -> feature map (B,D,7,7), non-negative. It normalises its input itself."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _block(3, 48, 4, kernel=6),  # (B,48,28,28): a coarse stem, because large maps are what costs time on a CPU
            _block(48, 64, 2),  # (B,64,14,14)
            _block(64, 96, 1),
            _block(96, CHANNELS, 2),  # (B,D,7,7)
            _block(CHANNELS, CHANNELS, 1),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.body((images - 0.5) / 0.25)
        return features


def _block(inputs: int, outputs: int, stride: int, kernel: int = 3) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, 1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


def load_images(folder: Path | str, files: list[str]) -> torch.Tensor:
    """The named images below ``folder`` as uint8, (N,3,112,112), in memory.

    Raises:
        UserError: an image that cannot be read, or of another size; names it.
    """
    out = torch.empty(len(files), 3, SIZE, SIZE, dtype=torch.uint8)
    for i, name in enumerate(files):
        path = Path(folder) / name
        try:
            with Image.open(path) as image:
                pixels = np.array(image.convert("RGB"))
        except OSError as error:
            raise UserError(f"cannot read the image {path} ({error})") from error
        if pixels.shape != (SIZE, SIZE, 3):
            raise UserError(f"the image {path} is {pixels.shape[1]}x{pixels.shape[0]}, expected {SIZE}x{SIZE}")
        out[i] = torch.from_numpy(pixels).permute(2, 0, 1)
    return out


def train_demo_backbone(
    data_root: Path | str,
    out_path: Path | str,
    seed: int = 0,
    epochs: int = 40,
    batch_size: int = 32,
) -> Path:
    """Train a :class:`DemoBackbone` on the demo's train images on the CPU and save its weights to ``out_path``.

    The epochs were settled on validation classes alone: with 20 and 40 of them AUSUC there was 46 and 56 for vsmr, 26
    and 58 for dazle. The loss is cross-entropy on the train classes plus a multiple of BCE on their attributes. Weights
    trained with the same arguments on the same split are kept.

    Raises:
        UserError: the demo data set is missing, or its splits would leak test images into the training.
    """
    metadata = read_metadata(data_root, DEMO)
    settings = json.dumps(
        {"format": FORMAT, "seed": seed, "epochs": epochs, "batch_size": batch_size, "lr": _LR, "channels": CHANNELS}
        | {"attribute_weight": _ATTRIBUTE_WEIGHT, "threads": _THREADS, "split_sha256": metadata.split_sha256},
        sort_keys=True,
    )
    out_path = Path(out_path)
    if _saved_settings(out_path) == settings:
        log.info("the demo backbone is already in %s", out_path)
        return out_path

    loc = _training_images(metadata)
    folder = image_folder(Path(data_root), DEMO)
    images = load_images(folder, [metadata.image_files[i] for i in loc])  # (N,3,112,112)
    known, classes = (torch.from_numpy(a) for a in np.unique(metadata.labels[loc], return_inverse=True))  # (S,), (N,)
    attributes = torch.from_numpy((metadata.original_att[known] > 50).astype(np.float32))  # (S,K)

    log.info("demo backbone: %d images of %d classes, none of validation or unseen classes", len(loc), len(known))

    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):  # the modules' own initialisation must not move the global generator
        backbone = DemoBackbone()
        heads = nn.Linear(CHANNELS, attributes.shape[0] + attributes.shape[1])
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
    nn.init.normal_(heads.weight, std=0.02, generator=generator)
    nn.init.zeros_(heads.bias)
    backbone = backbone.to(memory_format=torch.channels_last).train()
    parameters = [*backbone.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=_LR, weight_decay=0.05)
    steps = epochs * -(-len(loc) // batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _LR, total_steps=max(steps, 2), pct_start=0.2)

    before = torch.get_num_threads()
    torch.set_num_threads(_THREADS)
    try:
        for epoch in range(epochs):
            total = 0.0
            for rows in torch.randperm(len(loc), generator=generator).split(batch_size):
                batch = _augment(images[rows], generator)
                pooled = backbone(batch).mean(dim=(2, 3))  # (B,D)
                logits = heads(pooled)  # (B,S+K)
                class_logits, attribute_logits = logits.split(attributes.shape, dim=1)
                target = classes[rows]
                bce = F.binary_cross_entropy_with_logits(attribute_logits, attributes[target])
                loss = F.cross_entropy(class_logits, target, label_smoothing=0.1) + _ATTRIBUTE_WEIGHT * bce
                optimizer.zero_grad(set_to_none=True)
                torch.autograd.backward(loss)
                optimizer.step()
                schedule.step()
                total += loss.item() * len(rows)
            log.info("demo backbone: epoch %d/%d, loss %.3f", epoch + 1, epochs, total / len(loc))
    finally:
        torch.set_num_threads(before)

    weights = {k: v.detach().contiguous() for k, v in backbone.state_dict().items()}
    record = {"settings": settings, "images": str(len(loc)), "torch": torch.__version__}
    write_bytes(out_path, save(weights, metadata=record))
    return out_path


def _training_images(metadata: Metadata) -> np.ndarray:
    """The rows of train, after making sure that no test image and no validation or unseen class is among them."""
    metadata.check(DEMO.name)
    loc = metadata.train_loc
    test = np.concatenate([metadata.test_seen_loc, metadata.test_unseen_loc])
    new = [*metadata.unseen, *np.unique(metadata.labels[metadata.val_loc])]
    assert not np.intersect1d(loc, test).size, "a test image among the backbone's training images"
    assert not np.isin(metadata.labels[loc], new).any(), "a validation or unseen class in the backbone's training set"
    return loc


def _augment(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Random flip and shift of each image, edges repeated: uint8 (B,3,S,S) -> float32 in [0,1], (B,3,S,S).

    One gather on bytes; the result is already in channels_last order.
    """
    count, _, side, _ = images.shape
    shift = torch.randint(-SHIFT, SHIFT + 1, (2, count, 1), generator=generator)
    flip = torch.rand(count, 1, generator=generator) < 0.5
    along = torch.arange(side).expand(count, side)
    y = (along + shift[0]).clamp(0, side - 1)  # (B,S)
    x = (torch.where(flip, side - 1 - along, along) + shift[1]).clamp(0, side - 1)
    picked = images.permute(0, 2, 3, 1)[torch.arange(count)[:, None, None], y[:, :, None], x[:, None, :]]  # (B,S,S,3)
    return picked.float().div_(255).permute(0, 3, 1, 2)


def _saved_settings(path: Path) -> str | None:
    try:
        with safe_open(path, framework="pt") as file:
            return (file.metadata() or {}).get("settings")
    except (OSError, SafetensorError):
        return None
