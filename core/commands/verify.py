"""Check files against their checksums in full: feature files, attribute vectors, checkpoints, result folders.

python -m core.commands.verify data/CUB/feature_map_ResNet_101_CUB.hdf5 w2v/CUB_attribute.pkl results/CUB/vsmr/seed0
python -m core.commands.verify results        # every run below a folder
"""

from __future__ import annotations

import sys
from pathlib import Path

from core.commands.parser import Parser
from core.files.errors import UserError, run_cli


def check(path: Path) -> int:
    """Check one file or folder; returns how many things were checked.

    Raises:
        UserError: what is wrong with it, or that it is nothing this program writes.
    """
    # where an error or an interruption of their import is one line
    from core.datasets.vectors import load_attribute_vectors
    from core.experiments.results import read_result, verify_run
    from core.features.feature_file import verify
    from core.files.pickles import load_array_pickle
    from core.training.checkpoint import load_checkpoint

    if path.is_dir():
        finished = sorted(path.rglob("metrics.json"))
        for found in finished:
            verify_run(found.parent)
        validation_only = sorted(path.rglob("validation.json"))
        for found in validation_only:
            read_result(found)
        if not finished and not validation_only:
            raise UserError(f"no finished run below {path} (looked for metrics.json and validation.json)")
        return len(finished) + len(validation_only)
    if not path.is_file():
        raise UserError(f"no file or folder at {path}")
    if path.suffix == ".hdf5":
        verify(path)
    elif path.suffix == ".safetensors":
        load_checkpoint(path)
    elif path.suffix == ".pkl":
        load_attribute_vectors(path, len(load_array_pickle(path)))
    elif path.suffix == ".json":
        read_result(path)
    else:
        raise UserError(f"{path}: only .hdf5, .pkl, .safetensors, .json and folders of results can be checked")
    return 1


def main(argv: list[str] | None = None) -> int:
    """Check every path; all are looked at before the first damage ends the program."""
    parser = Parser(__doc__)
    parser.add_argument("paths", nargs="+", type=Path)
    wrong = []
    for path in parser.parse_args(argv).paths:
        try:
            sys.stdout.write(f"{path}: {check(path)} checked, nothing wrong\n")
        except UserError as error:
            wrong.append(str(error))
    if wrong:
        raise UserError("\n  ".join(wrong))
    return 0


if __name__ == "__main__":
    raise SystemExit(run_cli(main))
