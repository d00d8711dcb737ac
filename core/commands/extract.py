"""The command line of the extraction, which the scripts in extract_feature/ share."""

from __future__ import annotations

import argparse
import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from core.commands.parser import Parser, from_flags, whole
from core.datasets.paths import DEFAULT_ROOT
from core.datasets.registry import DATASETS, DataSet
from core.features.extraction import extract
from core.features.settings import ExtractionConfig
from core.fields import add_fields
from core.files.errors import UserError
from core.files.memory import keep_memory

_log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser, dataset: DataSet) -> None:
    """The extraction flags, each with its default."""
    add_fields(parser, ExtractionConfig(backbone="demo" if dataset.source == "DEMO" else "resnet101"))
    add, batch = parser.add_argument, parser.get_default("batch_size")
    said = "the same as --batch-size: its name where a command trains too"
    add("--image-batch-size", dest="batch_size", type=whole(1), default=batch, help=said)
    said = "part I of N, from 0 on; the last one makes the file (from a SLURM job array, torchrun or srun, else all)"
    add("--shard", metavar="I/N", help=said)
    add("--limit", type=whole(1), help="stop after about this many images and keep their part: says images a second")
    add("--data-root", type=Path, default=DEFAULT_ROOT, help="folder with images and xlsa17/ (%(default)s)")
    where = f"DATA_ROOT/{dataset.source}/feature_map_<Backbone>_{dataset.source}.hdf5"
    add("--out", type=Path, help=f"feature file ({where})")


def main(name: str, description: str | None = None, argv: Sequence[str] | None = None) -> int:
    dataset, parser = DATASETS[name], Parser(description)
    add_arguments(parser, dataset)
    args = parser.parse_args(argv)
    keep_memory()
    config = from_flags(ExtractionConfig, args)
    shard = parse_shard(args.shard) if args.shard else shard_of_environment()
    if config.device in ("auto", "cuda", "gpu") and (rank := local_rank()) is not None and torch.cuda.is_available():
        config = replace(config, device=f"cuda:{rank % torch.cuda.device_count()}")
    path = extract(dataset, data_root=args.data_root, out=args.out, config=config, limit=args.limit, shard=shard)
    _log.info("features in %s", path)
    return 0


def parse_shard(text: str) -> tuple[int, int]:
    """ "2/8" as (2,8)."""
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text.strip())
    if not match or not int(match[1]) < int(match[2]):
        raise UserError(f"--shard {text}: i/n is needed, i from 0 to n-1, such as 0/8 for the first of eight")
    return int(match[1]), int(match[2])


def shard_of_environment(environment: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """(i,n) that a job array, and torchrun or srun within it, give this process; (0,1) where there is none."""
    index, count = 0, int(environment.get("SLURM_ARRAY_TASK_COUNT", 1))
    if count > 1:
        first, last, own = (int(environment[f"SLURM_ARRAY_TASK_{key}"]) for key in ("MIN", "MAX", "ID"))
        if last - first + 1 != count:
            raise UserError(
                f"the job array has {count} tasks from {first} to {last}, with gaps, so the shards are not clear; give "
                "each task its own --shard i/n"
            )
        index = own - first
    for rank, size in (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS")):
        if rank in environment and size in environment:
            return index * int(environment[size]) + int(environment[rank]), count * int(environment[size])
    return index, count


def local_rank(environment: Mapping[str, str] = os.environ) -> int | None:
    """Number of this process among those that torchrun or srun started on this machine; None without them."""
    for index, count_of in (("LOCAL_RANK", "WORLD_SIZE"), ("SLURM_LOCALID", "SLURM_STEP_NUM_TASKS")):
        if index in environment and int(environment.get(count_of, 1)) > 1:
            return int(environment[index])
    return None
