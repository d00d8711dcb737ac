"""Flags that several commands share."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path
from typing import Any

from core.commands.parser import DEVICE, whole
from core.files.errors import UserError
from core.method import Registered, epochs_of, flag_of, methods, parse_value, range_of, with_settings

PRECISIONS = ("float32", "bfloat16")


def add_data(p: argparse.ArgumentParser, source: str) -> None:
    """--data-root, --features and --w2v."""
    group = p.add_argument_group("data")
    group.add_argument("--data-root", type=Path, help="holds xlsa17/, images, features and vectors (data)")
    group.add_argument(
        "--features", type=Path, help=f"feature file (the one ROOT/{source}/feature_map_*_{source}.hdf5)"
    )
    group.add_argument(
        "--w2v", type=Path, help=f"attribute vectors (ROOT/w2v/{source}_attribute.pkl; for ROOT data: w2v/)"
    )


def add_device(p: argparse.ArgumentParser) -> None:
    """--device and --precision."""
    p.add_argument("--device", default="auto", help=DEVICE)
    p.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="float32",
        help="of the products in a training step; bfloat16 is faster where the processor has it (float32)",
    )


def add_seeds(p: argparse.ArgumentParser, default: int) -> None:
    """--seeds N or --seed K."""
    seeds = p.add_mutually_exclusive_group()
    seeds.add_argument("--seeds", type=whole(1), default=default, help=f"number of seeds, 0 to N-1 ({default})")
    seeds.add_argument("--seed", type=whole(0), help="this seed alone, for job arrays (seed k has validation split k)")


def seeds_of(args: argparse.Namespace) -> tuple[int, ...]:
    return (args.seed,) if args.seed is not None else tuple(range(args.seeds))


def add_run(p: argparse.ArgumentParser, out: Path | None, gamma_splits: int = 1) -> None:
    """--method, and how a run is chosen, where it goes and what it leaves; ``out`` None: ROOT/results."""
    on_off = argparse.BooleanOptionalAction
    p.add_argument("--method", choices=[*methods()], default="vsmr", help="(vsmr)")
    p.add_argument(
        "--select",
        choices=("val", "last"),
        default="val",
        help="val: epochs, γ and thresholds from a class-disjoint validation split, then refit; last: all epochs, the "
        "method's own γ (val)",
    )
    p.add_argument(
        "--gamma-splits",
        type=whole(1),
        default=gamma_splits,
        help="with --select val: validation splits whose γ is averaged, the seed's own and the next; each is trained "
        f"on once, and where there are few classes one split's γ is a guess ({gamma_splits})",
    )
    p.add_argument(
        "--out", type=Path, default=out, help=f"OUT/<data set>/<features>/<method>/seed<k>/ ({out or 'ROOT/results'})"
    )
    p.add_argument(
        "--resume",
        action=on_off,
        default=True,
        help="continue an unfinished run and read back a finished one; --no-resume starts anew (resume)",
    )
    p.add_argument(
        "--diagnostics",
        action=on_off,
        default=True,
        help="also print the row labelled 'selected on test'; it costs one evaluation an epoch (yes)",
    )
    p.add_argument(
        "--tensorboard", action="store_true", help="also write OUT/.../tensorboard/, to be watched while it trains"
    )
    p.add_argument("--page", action="store_true", help="also write page/, which shows why test images got their names")


def add_recipes(p: argparse.ArgumentParser) -> None:
    """One flag for each field of each method's recipe; what they mean stands in :func:`recipe_help`."""
    names = {f.name for m in methods().values() for f in fields(m.recipe_type) if f.metadata["flag"]}
    for name in sorted(names):
        p.add_argument(flag_of(name), dest=f"hp_{name}", metavar="VALUE", help=argparse.SUPPRESS)


def recipe_help(dataset: str) -> str:
    """The hyper-parameters of every method on a data set, method by method."""
    lines = ["hyper-parameters by method (default on this data set; range):"]
    for m in methods().values():
        recipe = m.recipe(dataset)
        lines.append(f"\n{m.name}:")
        for f in fields(recipe):
            if f.metadata["flag"]:
                value = getattr(recipe, f.name)
                shown = ("off", "on")[value] if isinstance(value, bool) else "none" if value is None else value
                limits = f"; {range_of(f)}" if range_of(f) else ""
                lines.append(f"  {flag_of(f.name):<22} {f.metadata['help']} ({shown}{limits})")
    return "\n".join(lines)


def recipe_from(args: argparse.Namespace, method: Registered, dataset: str) -> tuple[Any, int]:
    """The method's recipe on a data set with the flags that were given, and the epochs of its selectable phase.

    Raises:
        UserError: a flag that is no setting of the method, or a value outside its range.
    """
    recipe = method.recipe(dataset)
    known = {f.name: f for f in fields(recipe) if f.metadata["flag"]}
    given = {key.removeprefix("hp_"): text for key, text in vars(args).items() if key.startswith("hp_") and text}
    if strangers := [name for name in given if name not in known]:
        own = ", ".join(flag_of(name) for name in known) or "none"
        raise UserError(f"{flag_of(strangers[0])} is no setting of {method.name}; its settings are {own}")
    settings = {name: parse_value(method.recipe_type, name, text) for name, text in given.items()}
    recipe = with_settings(recipe, settings)
    return recipe, epochs_of(recipe)
