"""The command line of the extraction, which the scripts in extract_feature/ share."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from core.commands.parser import DEVICE, Parser, from_flags, whole
from core.datasets.paths import DEFAULT_ROOT
from core.datasets.registry import DATASETS, DataSet
from core.features.backbones import SAW_UNSEEN
from core.features.devices import resolve_device
from core.features.extraction import estimate, extract
from core.features.settings import BATCH_SIZE, DTYPES, STORES, ExtractionConfig
from core.features.shards import Shard, local_rank, parse_shard, run_on_devices, shard_of_environment
from core.features.trunks import DEFAULT_WEIGHTS

_log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser, dataset: DataSet) -> None:
    """The extraction flags, each with its default."""
    source = dataset.source
    demo = source == "DEMO"
    add = parser.add_argument
    add(
        "--backbone",
        default="demo" if demo else "resnet101",
        help="torchvision classifier (resnet101, vit_b_16, swin_t, ...), timm:NAME for any model of timm, "
        "open_clip:MODEL/PRETRAINED for the image embeddings of CLIP models, or demo "
        "(default: %(default)s)",
    )
    add(
        "--weights",
        help="torchvision weights name, a weights file (.safetensors, .pth, .pth.tar, .ckpt; its head is ignored), or "
        f"random (default: {DEFAULT_WEIGHTS}; for timm those its name says)",
    )
    add(
        "--pretraining-saw-unseen",
        choices=SAW_UNSEEN,
        help="for weights files and timm: whether their pretraining saw images of unseen classes (default: unknown)",
    )
    add(
        "--input-size",
        type=whole(1),
        help="image side in pixels: 224 gives ResNet 7x7 regions, 448 gives 14x14 (default: the backbone's own)",
    )
    add(
        "--pool",
        type=whole(1),
        default=1,
        help="average this many by this many regions into one (default: %(default)s)",
    )
    add(
        "--layers",
        default="",
        metavar="NAME[,NAME]",
        help="earlier layers, averaged to the grid of the last map and put behind it, as layer3 (default: none)",
    )
    add("--flip", action="store_true", help="average the features of each image and of its mirror image")
    add("--dtype", choices=DTYPES, default="float32", help="arithmetic of the backbone (default: %(default)s)")
    add("--store", choices=STORES, default="float16", help="type in the file (default: %(default)s)")
    add("--device", default="auto", help=DEVICE)
    add("--devices", help="one process and shard for each: cuda:0,cuda:1 or all (default: --device alone)")
    add(
        "--shard",
        metavar="I/N",
        help="extract part I of N (from 0 on); the last one makes the file (default: from a SLURM job array, torchrun "
        "or srun, else all)",
    )
    add("--workers", type=whole(1), help="decoding threads (default: one per core, 2 to 16)")
    add(
        *("--batch-size", "--image-batch-size"),  # the latter is its name where a command trains too
        type=whole(1),
        default=BATCH_SIZE,
        help="images per forward pass (default: %(default)s)",
    )
    add("--limit", type=whole(1), help="stop after this many images and keep the partial file (default: all)")
    add("--dry-run", action="store_true", help="say rows, bytes and time from a measured batch; write nothing")
    add("--data-root", type=Path, default=DEFAULT_ROOT, help="folder with images and xlsa17/ (default: %(default)s)")
    add(
        "--out",
        type=Path,
        help=f"feature file (default: DATA_ROOT/{source}/feature_map_<Backbone>_{source}.hdf5)",
    )


def main(name: str, description: str | None = None, argv: Sequence[str] | None = None) -> int:
    dataset, parser = DATASETS[name], Parser(description)
    add_arguments(parser, dataset)
    args = parser.parse_args(argv)
    layers = tuple(name.strip() for name in args.layers.split(",") if name.strip())
    config = from_flags(ExtractionConfig, args, layers=layers)
    if args.dry_run:
        _log.info("%s", estimate(dataset, data_root=args.data_root, config=config))
        return 0
    shard = parse_shard(args.shard) if args.shard else shard_of_environment()
    work = partial(extract_shard, name, data_root=args.data_root, out=args.out, limit=args.limit)
    if args.devices:
        every = [f"cuda:{i}" for i in range(torch.cuda.device_count())] or ["cpu"]
        named = args.devices.strip().lower()
        devices = every if named == "all" else [str(resolve_device(name)) for name in args.devices.split(",")]
        cores = (os.cpu_count() or 2) // len(devices)
        run_on_devices(partial(work, replace(config, workers=config.workers or max(2, cores))), devices, shard)
        return 0
    device = config.device
    if device in ("auto", "cuda", "gpu") and (rank := local_rank()) is not None and torch.cuda.is_available():
        device = f"cuda:{rank % torch.cuda.device_count()}"
    work(config, shard, device)
    return 0


def extract_shard(name: str, config: ExtractionConfig, shard: Shard, device: str, **places: Any) -> None:
    """Extract a shard on a device; what a process of --devices does."""
    path = extract(DATASETS[name], config=replace(config, device=device), shard=shard, **places)
    _log.info("features in %s", path)
