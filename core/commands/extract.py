"""The command line of the extraction, which the scripts in extract_feature/ share."""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from core.commands.parser import Parser, from_flags
from core.datasets.paths import DEFAULT_ROOT
from core.datasets.registry import DATASETS
from core.features.extraction import extract
from core.features.settings import ExtractionConfig
from core.fields import add_fields
from core.files.memory import keep_memory

_log = logging.getLogger(__name__)


def main(name: str, description: str | None = None, argv: Sequence[str] | None = None) -> int:
    dataset, parser = DATASETS[name], Parser(description)
    add_fields(parser, ExtractionConfig())
    add = parser.add_argument
    said = "part I of N, from 0 on; the process that ends last makes the file (all)"
    add("--shard", metavar="I/N", type=shard_of, default=(0, 1), help=said)
    add("--data-root", type=Path, default=DEFAULT_ROOT, help="folder with images and xlsa17/ (%(default)s)")
    add("--out", type=Path, help="feature file (DATA_ROOT/<data set>/feature_map_<Backbone>_<data set>.hdf5)")
    args = parser.parse_args(argv)
    keep_memory()
    config = from_flags(ExtractionConfig, args)
    path = extract(dataset, data_root=args.data_root, out=args.out, config=config, shard=args.shard)
    _log.info("features in %s", path)
    return 0


def shard_of(text: str) -> tuple[int, int]:
    """Type of a flag: "2/8" as (2,8)."""
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise argparse.ArgumentTypeError(f"{text!r}: i/n is needed, i from 0 to n-1, such as 0/8")
    return int(index), int(count)
