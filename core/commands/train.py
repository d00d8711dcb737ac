"""Command line of the drivers: :func:`main` reads the flags and the data, :func:`run_seeds` trains and tables.

The course of events: a driver calls :func:`main`; each seed is one call of core/experiments/run.py:run, which chooses
on the validation fold, refits, and reads the test sets once; core/training/loop.py trains what the method's file gives.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.commands import flags
from core.commands.parser import from_flags
from core.datasets import paths
from core.datasets.registry import DATASETS, OWN
from core.methods import find_method

if TYPE_CHECKING:
    from core.experiments.inputs import Inputs

log = logging.getLogger(__name__)


def main(dataset: str, description: str | None, argv: Sequence[str] | None = None) -> int:
    """Run a driver: ``dataset`` is the one it is named for, ``argv`` what was typed (None: the program's own)."""
    p, name = flags.method_first(description, dataset, argv)
    flags.add_seeds(p, 1)
    flags.add_data(p, DATASETS[dataset].source)
    flags.add_device(p)
    flags.add_run(p, Path("results"))
    args = p.parse_args(argv)
    recipe = from_flags(find_method(args.method).recipe_type, args)

    # what parsing and --help do not need: pandas, scipy and matplotlib take seconds
    from core.experiments.inputs import load_inputs

    if dataset == "DEMO":
        from core.commands.demo import prepare_demo

        prepare_demo(args.data_root or Path("data"))
    inputs = load_inputs(name, data_root=args.data_root, features=args.features, w2v=args.w2v, device=args.device)
    return run_seeds(args, inputs, recipe, args.data_root or paths.DEFAULT_ROOT)


def run_seeds(args: argparse.Namespace, inputs: Inputs, recipe: Any, data_root: Path) -> int:
    """Train every seed, print the table; OWN_ours.py ends in it too."""
    from core.experiments.identity import run_config
    from core.experiments.results import read_result, row_of
    from core.experiments.run import run
    from core.experiments.use import fit_for_use
    from core.experiments.watching import Board
    from core.files.atomic import write_bytes
    from core.reporting.run_page import draw_page
    from core.reporting.tables import all_tables

    folder = args.out / inputs.dataset / inputs.variant / args.method
    for seed in flags.seeds_of(args):
        how = {"select": args.select, "precision": args.precision, "gamma_splits": args.gamma_splits}
        config = run_config(inputs, args.method, recipe, seed=seed, **how)
        out = folder / f"seed{seed}"
        watch = Board(out) if args.tensorboard else None
        run(config, inputs, out, resume=args.resume, watch=watch)
    rows = sorted((row_of(read_result(p)) for p in folder.glob("seed*/metrics.json")), key=lambda row: row["seed"])
    gammas = ", ".join(f"{row['gamma']:.3g}" for row in rows)
    text = f"{all_tables(rows)}\nγ of each seed: {gammas}; chosen: {rows[0]['how']}.\n"
    first = folder / f"seed{flags.seeds_of(args)[0]}"
    if inputs.dataset == OWN.name:
        text += f"\n{fit_for_use(first, inputs)}\n"
    write_bytes(folder / "table.md", text.encode())
    sys.stdout.write(f"\n{text}\nresults: {folder}\n")
    if args.page:
        sys.stdout.write(f"page: {draw_page(first, inputs, data_root, folder / 'page')}\n")
    return 0
