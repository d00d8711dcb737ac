"""Make a feature file of the parts that several processes extracted, byte for byte that of a single pass.

python -m core.commands.merge data/SUN/feature_map_ResNet_101_SUN.hdf5

The last process does it by itself; this is for parts that were brought together by hand, or where it was interrupted.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from core.commands.parser import Parser
from core.features.writer import finish, parts_of
from core.files.errors import UserError, run_cli

_log = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(__doc__)
    parser.add_argument("final", type=Path, help="the feature file to make of FINAL.rows-*-*.npy")
    final: Path = parser.parse_args(argv).final
    if final.exists() and not parts_of(final):
        raise UserError(f"{final} is there already, and no part of it")
    if missing := finish(final):
        there = ", ".join(f"{part.rows.start} to {part.rows.stop - 1}" for part in parts_of(final))
        raise UserError(
            f"{missing} rows of {final} are missing still (there are parts of rows {there}): run their extraction "
            "again, the same command with the same --shard"
        )
    _log.info("features in %s", final)
    return 0


if __name__ == "__main__":
    raise SystemExit(run_cli(main))
