"""The weights that come with the demo: a small network that learns the demo's training classes and their attributes.

    python -m studies.demo_backbone --data-root data --out core/demo/backbone.safetensors

It never opens an image but those of the train split: the classes that methods are chosen on (val) are as new to it as
the unseen ones, so validation foretells the test. It takes one to three minutes. Another kind of processor gives other
weights, so these come along; a test holds that they are of the pictures that are drawn now.
"""

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save
from torch import nn
from torch.nn import functional as F

from core.commands.parser import Parser
from core.datasets.metadata import Metadata
from core.datasets.paths import image_folder
from core.datasets.registry import DEMO
from core.datasets.xlsa17 import read_metadata
from core.demo.backbone import D, DemoBackbone
from core.demo.dataset import render_demo
from core.files.atomic import write_bytes
from core.files.errors import run_cli

log = logging.getLogger(__name__)
_SEED, _BATCH, _LR = 0, 32, 4e-3
_ATTRIBUTE_WEIGHT = 4.0  # of the attributes' BCE beside the classes' cross-entropy
_THREADS = 1  # the maps are so small that threads wait for each other longer than they compute
SHIFT = 8  # pixels, the largest shift of the augmentation


def trained_on(metadata: Metadata) -> str:
    """Digest of the pictures, and of what their classes have; no percentages: their last bits are the processor's."""
    has = metadata.original_att[np.unique(metadata.labels[metadata.train_loc])] > 50
    pictures = [metadata.image_files[i] for i in metadata.train_loc]
    return hashlib.sha256(json.dumps([pictures, has.astype(np.float32).tolist()]).encode()).hexdigest()


def train(data_root: Path, out: Path, epochs: int = 40) -> None:
    """Train a :class:`DemoBackbone` on the demo's train images on the CPU and save its weights to ``out``.

    The epochs were settled on validation classes alone: with 20 and 40 of them AUSUC there was 46 and 56 for vsmr, 26
    and 58 for dazle. The loss is cross-entropy on the train classes plus a multiple of BCE on their attributes.
    """
    metadata = read_metadata(data_root, DEMO)
    loc = metadata.train_loc  # cut to trainval, and of other classes than val, by read_metadata
    known, classes = (torch.from_numpy(a) for a in np.unique(metadata.labels[loc], return_inverse=True))  # (S,), (N,)
    attributes = torch.from_numpy((metadata.original_att[known] > 50).astype(np.float32))  # (S,K)
    folder = image_folder(data_root, DEMO)
    pixels = np.stack([np.array(Image.open(folder / metadata.image_files[i]).convert("RGB")) for i in loc])
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()  # (N,3,112,112) uint8
    log.info("demo backbone: training on %d images of %d classes, none of them for validation", len(loc), len(known))

    generator = torch.Generator().manual_seed(_SEED)
    with torch.random.fork_rng(devices=[]):  # the modules' own initialisation must not move the global generator
        backbone = DemoBackbone()
        heads = nn.Linear(D, attributes.shape[0] + attributes.shape[1])
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
    nn.init.normal_(heads.weight, std=0.02, generator=generator)
    nn.init.zeros_(heads.bias)
    backbone = backbone.to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW([*backbone.parameters(), *heads.parameters()], lr=_LR, weight_decay=0.05)
    steps = epochs * -(-len(loc) // _BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _LR, total_steps=max(steps, 2), pct_start=0.2)

    before = torch.get_num_threads()
    torch.set_num_threads(_THREADS)
    try:
        for _ in range(epochs):
            for rows in torch.randperm(len(loc), generator=generator).split(_BATCH):
                pooled = backbone(_augment(images[rows], generator)).mean(dim=(2, 3))  # (B,D)
                class_logits, attribute_logits = heads(pooled).split(attributes.shape, dim=1)  # (B,S), (B,K)
                target = classes[rows]
                bce = F.binary_cross_entropy_with_logits(attribute_logits, attributes[target])
                loss = F.cross_entropy(class_logits, target, label_smoothing=0.1) + _ATTRIBUTE_WEIGHT * bce
                optimizer.zero_grad(set_to_none=True)
                torch.autograd.backward(loss)
                optimizer.step()
                schedule.step()
    finally:
        torch.set_num_threads(before)

    settings = {"epochs": epochs, "trained_on": trained_on(metadata)}
    weights = {k: v.detach().contiguous() for k, v in backbone.state_dict().items()}
    write_bytes(out, save(weights, metadata={"settings": json.dumps(settings), "torch": torch.__version__}))


def _augment(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Random flip and shift of each image, edges repeated: uint8 (B,3,S,S) -> float32 in [0,1], channels_last."""
    count, _, side, _ = images.shape
    shift = torch.randint(-SHIFT, SHIFT + 1, (2, count, 1), generator=generator)
    flip = torch.rand(count, 1, generator=generator) < 0.5
    along = torch.arange(side).expand(count, side)
    y = (along + shift[0]).clamp(0, side - 1)  # (B,S)
    x = (torch.where(flip, side - 1 - along, along) + shift[1]).clamp(0, side - 1)
    picked = images.permute(0, 2, 3, 1)[torch.arange(count)[:, None, None], y[:, :, None], x[:, None, :]]  # (B,S,S,3)
    return picked.float().div_(255).permute(0, 3, 1, 2)


def main(argv: Sequence[str] | None = None) -> int:
    """Draw the pictures that are not there, train, and write the weights."""
    parser = Parser(__doc__)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)
    render_demo(args.data_root)
    train(args.data_root, args.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(run_cli(main))
