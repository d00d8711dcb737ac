"""Check files against their checksums in full: feature files, attribute vectors, checkpoints, result folders.

python -m core.commands.verify data/CUB/feature_map_ResNet_101_CUB.hdf5 w2v/CUB_attribute.pkl results/CUB/vsmr/seed0
python -m core.commands.verify results        # every run below a folder
python -m core.commands.verify --board        # the rows of results/board: numbers, choices, digests
"""

from __future__ import annotations

import sys
from pathlib import Path

from core.commands.parser import Parser
from core.files.errors import UserError, run_cli


def check(path: Path) -> int:
    """Check one file or folder; returns how many things were checked."""
    # where an error or an interruption of their import is one line
    from core.datasets.vectors import load_attribute_vectors
    from core.experiments.results import read_result, verify_run
    from core.features.feature_file import verify
    from core.files.pickles import load_array_pickle
    from core.training.checkpoint import load_checkpoint

    if path.is_dir():
        found = sorted([*path.rglob("metrics.json"), *path.rglob("validation.json")])
        for result in found:
            verify_run(result)
        if not found:
            raise UserError(f"no finished run below {path} (looked for metrics.json)")
        return len(found)
    kinds = {
        ".hdf5": verify, ".safetensors": load_checkpoint, ".json": read_result,
        ".pkl": lambda path: load_attribute_vectors(path, len(load_array_pickle(path))),
    }  # fmt: skip
    if path.suffix not in kinds:
        raise UserError(f"{path}: only {', '.join(kinds)} and folders of results can be checked")
    kinds[path.suffix](path)
    return 1


def main(argv: list[str] | None = None) -> int:
    """Check every path; all are looked at before the first damage ends the program."""
    from core.experiments.board import read_board

    parser = Parser(__doc__)
    parser.add_argument("paths", nargs="*", type=Path)
    parser.add_argument("--board", nargs="?", const=Path("results/board"), type=Path, help="rows of (results/board)")
    args, wrong = parser.parse_args(argv), []
    if not args.paths and not args.board:
        raise UserError("nothing to check: name files or folders, or say --board")
    for path in [*args.paths, *filter(None, [args.board])]:
        try:
            found = len(read_board(path)) if path == args.board else check(path)
            sys.stdout.write(f"{path}: {found} checked, nothing wrong\n")
        except UserError as error:
            wrong.append(str(error))
    if wrong:
        raise UserError("\n  ".join(wrong))
    return 0


if __name__ == "__main__":
    raise SystemExit(run_cli(main))
