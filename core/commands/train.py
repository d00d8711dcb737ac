"""Command line of the drivers: parse flags, load inputs, run every seed, print the table."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.commands import flags
from core.commands.parser import Parser
from core.datasets import paths
from core.datasets.registry import DATASETS
from core.files.errors import UserError, differences
from core.method import find_method, with_settings

if TYPE_CHECKING:
    from core.experiments.inputs import Inputs

log = logging.getLogger(__name__)


def parser(dataset: str, description: str | None) -> Parser:
    """All flags of a driver; defaults of hyper-parameters are the recipe's."""
    p = Parser(description, flags.recipe_help(dataset))
    source = DATASETS[dataset].source
    p.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="repeat the run whose config.json this is: its method, seed and settings; other data or code are refused",
    )
    flags.add_seeds(p, 1)
    flags.add_data(p, source)
    flags.add_device(p)
    flags.add_run(p, Path("results"))
    if dataset == "CUB":
        p.add_argument(
            "--split",
            choices=("ps", "cub50"),
            default="ps",
            help="ps: proposed split, 150+50 classes; cub50: the authors' 40+10 subset (ps)",
        )
    flags.add_recipes(p)
    return p


def main(dataset: str, description: str | None, argv: Sequence[str] | None = None) -> int:
    args = parser(dataset, description).parse_args(argv)
    name = "CUB50" if getattr(args, "split", "ps") == "cub50" else dataset
    repeated = _read_config(args, argv) if args.config else None
    if repeated is not None:
        name = repeated["dataset"]
        if DATASETS[name].source != DATASETS[dataset].source:
            raise UserError(f"{args.config} is of a run on {name}, not on {dataset}")
        recipe, epochs = repeated["recipe"], repeated["epochs"]
    else:
        recipe, epochs = flags.recipe_from(args, find_method(args.method), name)
    from core.features.devices import resolve_device

    device = str(resolve_device(args.device))
    if dataset == "DEMO":
        from core.demo.setup import prepare_demo

        prepare_demo(args.data_root or Path("data"))

    # what parsing and --help do not need: pandas, scipy and matplotlib take seconds
    from core.experiments.inputs import load_inputs

    inputs = load_inputs(name, data_root=args.data_root, features=args.features, w2v=args.w2v, device=device)
    return run_seeds(args, inputs, recipe, epochs, args.data_root or paths.DEFAULT_ROOT, repeated=repeated)


def run_seeds(
    args: argparse.Namespace,
    inputs: Inputs,
    recipe: Any,
    epochs: int,
    data_root: Path,
    *,
    repeated: dict[str, Any] | None = None,
) -> int:
    """Train every seed and print the table; OWN_ours.py ends in it too. ``repeated``: the config.json of --config."""
    from core.experiments.identity import run_config
    from core.experiments.results import row_of
    from core.experiments.run import run
    from core.experiments.watching import Board
    from core.files.atomic import write_bytes
    from core.reporting.attention import draw_attention
    from core.reporting.tables import table

    folder = args.out / inputs.dataset / inputs.variant / args.method
    rows = []
    for seed in flags.seeds_of(args):
        config = run_config(
            inputs,
            args.method,
            recipe,
            seed=seed,
            select=args.select,
            epochs=epochs,
            precision=args.precision,
            gamma_splits=args.gamma_splits,
        )
        if repeated is not None:
            _compare(args.config, repeated, asdict(config))
        out = folder / f"seed{seed}"
        watch = Board(out) if args.tensorboard else None
        result = run(config, inputs, out, resume=args.resume, diagnostics=args.diagnostics, watch=watch)
        rows.append(row_of(result) | {"folder": out.name})
    text = table(rows)
    write_bytes(folder / "table.md", (text + "\n").encode())
    sys.stdout.write(f"\n{text}\n\nresults: {folder}\n")
    figure, first = folder / "attention.png", folder / f"seed{flags.seeds_of(args)[0]}"
    try:
        draw_attention(first, inputs, data_root, figure)
        sys.stdout.write(f"attention figure: {figure}\n")
    except UserError as error:  # the numbers stand without it
        log.info("no attention figure: %s", error)
    if args.page:
        from core.reporting.run_page import draw_page

        page = draw_page(first, inputs, data_root, folder / "page")
        sys.stdout.write(f"page: {page}\n")
    return 0


def _read_config(args: argparse.Namespace, argv: Sequence[str] | None) -> dict[str, Any]:
    """The config.json of --config; method, seed, selection and precision in ``args`` become its own.

    Raises:
        UserError: no such file, or flags beside it that it decides.
    """
    from core.files.atomic import read_json

    given = [word.partition("=")[0] for word in (sys.argv[1:] if argv is None else argv)]
    beside = {"--config", "--data-root", "--features", "--w2v", "--device", "--out", "--resume", "--no-resume"}
    beside |= {"--diagnostics", "--no-diagnostics", "--tensorboard"} | ({"--split"} if "split" in args else set())
    if strangers := [word for word in given if word.startswith("--") and word not in beside]:
        raise UserError(f"{strangers[0]} beside --config: the file decides it; leave one of the two out")
    config = read_json(args.config)
    known = {"method", "seed", "select", "epochs", "precision", "recipe", "dataset"}
    if not isinstance(config, dict) or not known <= config.keys() or config["dataset"] not in DATASETS:
        raise UserError(f"{args.config} is no config.json of a run")
    registered = find_method(config["method"])
    try:
        config["recipe"] = with_settings(registered.recipe_type(), config["recipe"])
    except TypeError as error:
        raise UserError(f"{args.config}: settings that {config['method']} does not have ({error})") from error
    args.method, args.seed, args.select = config["method"], config["seed"], config["select"]
    args.precision, args.gamma_splits = config["precision"], config.get("gamma_splits", 1)
    return config


def _compare(path: Path, repeated: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuse a run that would not be the one of a config.json.

    Raises:
        UserError: names what differs.
    """
    was, now = (json.loads(json.dumps(c)) for c in (repeated | {"recipe": asdict(repeated["recipe"])}, now))
    if lines := differences(was, now):
        raise UserError(
            f"this would not be the run of {path}:\n  "
            + "\n  ".join(lines)
            + "\nUse the data and the version it was made with, or run without --config"
        )
