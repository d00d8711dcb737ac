"""Flags that several commands share."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from core.commands.parser import DEVICE, Parser, whole
from core.fields import add_fields
from core.methods import find_method, methods


def method_first(description: str | None, dataset: str, argv: Sequence[str] | None) -> tuple[Parser, str]:
    """A parser with --method, the settings of the method that ``argv`` names, and on CUB --split; the data set's name.

    What else there is depends on the method, so it is read first: ``--method dazle --help`` lists DAZLE's settings.
    """
    first = Parser(add_help=False)
    first.add_argument("--method", choices=[*methods()], default="vsmr", help="(vsmr); with --help: its own settings")
    if dataset == "CUB":
        said = "ps: proposed split, 150+50 classes; cub50: the authors' 40+10 subset (ps)"
        first.add_argument("--split", choices=("ps", "cub50"), default="ps", help=said)
    chosen, _ = first.parse_known_args(argv)
    name = "CUB50" if getattr(chosen, "split", "ps") == "cub50" else dataset
    p = Parser(description, named=f"--method {chosen.method} ", parents=[first])
    settings = p.add_argument_group(f"settings of {chosen.method}", "(default on this data set; range)")
    add_fields(settings, find_method(chosen.method).recipe(name))
    return p, name


def add_data(p: argparse.ArgumentParser, source: str) -> None:
    """--data-root, --features and --w2v."""
    add = p.add_argument_group("data").add_argument
    add("--data-root", type=Path, help="holds xlsa17/, images, features and vectors (data)")
    add("--features", type=Path, help=f"feature file (the one ROOT/{source}/feature_map_*_{source}.hdf5)")
    add("--w2v", type=Path, help=f"attribute vectors (ROOT/w2v/{source}_attribute.pkl; for ROOT data: w2v/)")


def add_device(p: argparse.ArgumentParser) -> None:
    """--device and --precision."""
    p.add_argument("--device", default="auto", help=DEVICE)
    said = "of the products in a training step; bfloat16 is faster where the processor has it (float32)"
    p.add_argument("--precision", choices=("float32", "bfloat16"), default="float32", help=said)


def add_seeds(p: argparse.ArgumentParser, default: int) -> None:
    """--seeds N or --seed K."""
    seeds = p.add_mutually_exclusive_group()
    seeds.add_argument("--seeds", type=whole(1), default=default, help=f"number of seeds, 0 to N-1 ({default})")
    seeds.add_argument("--seed", type=whole(0), help="this seed alone, for job arrays (seed k has validation split k)")


def seeds_of(args: argparse.Namespace) -> tuple[int, ...]:
    return (args.seed,) if args.seed is not None else tuple(range(args.seeds))


def add_run(p: argparse.ArgumentParser, out: Path | None, gamma_splits: int = 1) -> None:
    """How a run is chosen, where it goes and what it leaves; ``out`` None: ROOT/results."""
    add = p.add_argument
    said = "val: on class-disjoint validation classes, then refit; last: all epochs, the method's own γ (val)"
    add("--select", choices=("val", "last"), default="val", help=said)
    said = f"validation splits whose γ is averaged: the seed's and the next, each trained on once ({gamma_splits})"
    add("--gamma-splits", type=whole(1), default=gamma_splits, help=said)
    said = f"OUT/<data set>/<features>/<method>/seed<k>/ ({out or 'ROOT/results'})"
    add("--out", type=Path, default=out, help=said)
    said = "continue an unfinished run and read back a finished one; --no-resume starts anew (resume)"
    add("--resume", action=argparse.BooleanOptionalAction, default=True, help=said)
    add("--tensorboard", action="store_true", help="also write OUT/.../tensorboard/, to be watched while it trains")
    add("--page", action="store_true", help="also write page/, which shows why test images got their names")
