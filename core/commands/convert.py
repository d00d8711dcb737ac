"""Rewrite a feature file from elsewhere to the layout that is read quickly.

    python -m core.commands.convert their.hdf5 data/CUB/feature_map_vit_CUB.hdf5 --layout tokens
    python -m core.commands.convert dazle.hdf5 data/CUB/feature_map_ResNet_101_CUB.hdf5 --layout ndhw  # gzip
    python -m core.commands.convert vit_448px.hdf5 data/CUB/feature_map_vit_pool2_CUB.hdf5 --layout ndhw --pool 2

Interrupted? The same command continues.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from core.commands.parser import Parser, whole
from core.files.errors import run_cli

_log = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    # where an error or an interruption of their import is one line
    from core.datasets.registry import DATASETS
    from core.features.convert import LAYOUTS, convert
    from core.features.settings import STORES

    parser = Parser(__doc__)
    add = parser.add_argument
    add("source", type=Path, metavar="IN", help="feature file to read; it is left as it is")
    add("target", type=Path, metavar="OUT", help="feature file to write")
    layouts = "; ".join(f"{name}: {what}" for name, what in LAYOUTS.items())
    add("--layout", choices=LAYOUTS, required=True, help=f"axes of its feature_map. {layouts}")
    add("--store", choices=STORES, default="float16", help="type in the new file (default: %(default)s)")
    add("--pool", type=whole(1), default=1, help="average this many by this many regions into one (default: 1)")
    add("--dataset", choices=DATASETS, help="take names, attributes and splits from this data set's .mat files")
    add(
        "--data-root", type=Path, default=Path("data"), help="folder with xlsa17/, for --dataset (default: %(default)s)"
    )
    args = vars(parser.parse_args(argv))
    _log.info("features in %s", convert(**args | {"dataset": DATASETS.get(args["dataset"])}))
    return 0


if __name__ == "__main__":
    raise SystemExit(run_cli(main))
