"""The demo's backbone: a small network whose weights come from nowhere but the demo's own training classes.

It learns those classes and their attributes from the images of the train split, and never opens any other image: the
classes that methods are chosen on (val) are as new to it as the unseen ones, so validation foretells the test.
"""

import contextlib
import hashlib
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

from core.datasets.paths import image_folder
from core.datasets.registry import DEMO
from core.datasets.xlsa17 import read_metadata
from core.files.atomic import write_bytes

log = logging.getLogger(__name__)

FORMAT = 2  # raise it when the network or its training changes
D = 128  # channels of the feature map
_SEED, _BATCH, _LR = 0, 32, 4e-3
_ATTRIBUTE_WEIGHT = 4.0  # of the attributes' BCE beside the classes' cross-entropy
_THREADS = 1  # the maps are so small that threads wait for each other longer than they compute
# made by train_demo_backbone: saves a minute, and gives the same features on every machine
MADE = Path(__file__).with_name("backbone.safetensors")
SHIFT = 8  # pixels, the largest shift of the augmentation


class DemoBackbone(nn.Module):
    """RGB images in [0,1], (B,3,112,112) -> feature map (B,D,7,7), non-negative. It normalises its input itself."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential()
        # (B,48,28,28), (B,64,14,14), (B,96,14,14), (B,D,7,7) twice; large maps are what costs time on a CPU
        for ins, outs, kernel, stride in ((3, 48, 6, 4), (48, 64, 3, 2), (64, 96, 3, 1), (96, D, 3, 2), (D, D, 3, 1)):
            convolution = nn.Conv2d(ins, outs, kernel, stride, 1, bias=False)
            self.body.append(nn.Sequential(convolution, nn.BatchNorm2d(outs), nn.ReLU(inplace=True)))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.body((images - 0.5) / 0.25)
        return features


def train_demo_backbone(data_root: Path | str, out_path: Path | str, epochs: int = 40) -> Path:
    """Train a :class:`DemoBackbone` on the demo's train images on the CPU and save its weights to ``out_path``.

    The epochs were settled on validation classes alone: with 20 and 40 of them AUSUC there was 46 and 56 for vsmr, 26
    and 58 for dazle. The loss is cross-entropy on the train classes plus a multiple of BCE on their attributes. Weights
    trained alike on the same split are kept, or taken from :data:`MADE`.
    """
    metadata, out_path = read_metadata(data_root, DEMO), Path(out_path)
    loc = metadata.train_loc  # cut to trainval, and of other classes than val, by read_metadata
    known, classes = (torch.from_numpy(a) for a in np.unique(metadata.labels[loc], return_inverse=True))  # (S,), (N,)
    attributes = torch.from_numpy((metadata.original_att[known] > 50).astype(np.float32))  # (S,K)
    # no percentages: their last bits are the processor's
    trained_on = hashlib.sha256(json.dumps([[metadata.image_files[i] for i in loc], attributes.tolist()]).encode())
    settings = json.dumps(
        {"format": FORMAT, "seed": _SEED, "epochs": epochs, "batch_size": _BATCH, "lr": _LR, "channels": D}
        | {"attribute_weight": _ATTRIBUTE_WEIGHT, "threads": _THREADS, "trained_on": trained_on.hexdigest()},
        sort_keys=True,
    )
    for there in (out_path, MADE):
        with contextlib.suppress(OSError, SafetensorError), safe_open(there, "pt") as file:
            if (file.metadata() or {}).get("settings") == settings:
                if there != out_path:
                    write_bytes(out_path, there.read_bytes())
                return out_path

    folder = image_folder(Path(data_root), DEMO)
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

    weights = {k: v.detach().contiguous() for k, v in backbone.state_dict().items()}
    write_bytes(out_path, save(weights, metadata={"settings": settings, "torch": torch.__version__}))
    return out_path


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
