"""Merge the parts of an extraction in shards into one feature file, byte for byte that of a single pass.

python -m core.commands.merge data/SUN/feature_map_ResNet_101_SUN.hdf5

The last shard does it by itself; this is for parts that were brought together by hand, or a merge that was interrupted.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from core.commands.parser import Parser
from core.features.merge import merge
from core.files.errors import run_cli

_log = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(__doc__)
    parser.add_argument("final", type=Path, help="the feature file to make of FINAL.shard-*-of-*")
    parser.add_argument("--keep", action="store_true", help="leave the parts where they are")
    args = parser.parse_args(argv)
    _log.info("features in %s", merge(args.final, keep=args.keep))
    return 0


if __name__ == "__main__":
    raise SystemExit(run_cli(main))
