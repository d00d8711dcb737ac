"""Command line of the drivers: parse flags, load inputs, run every seed, print the table."""

from __future__ import annotations

import argparse
import logging
import sys
from argparse import BooleanOptionalAction
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.commands import flags
from core.commands.parser import Parser
from core.datasets import paths
from core.datasets.registry import DATASETS
from core.files.errors import UserError
from core.method import find_method, methods

if TYPE_CHECKING:
    from core.experiments.inputs import Inputs

log = logging.getLogger(__name__)


def parser(dataset: str, description: str | None) -> Parser:
    """All flags of a driver; defaults of hyper-parameters are the recipe's."""
    p = Parser(description, flags.recipe_help(dataset))
    source = DATASETS[dataset].source
    p.add_argument("--method", choices=[*methods()], default="vsmr", help="(vsmr)")
    flags.add_seeds(p, 1)
    flags.add_data(p, source)
    flags.add_device(p)
    p.add_argument(
        "--select",
        choices=("val", "last"),
        default="val",
        help="val: epochs, γ and thresholds from a class-disjoint validation split, then refit; last: all epochs, the "
        "method's own γ (val)",
    )
    p.add_argument("--out", type=Path, default=Path("results"), help="OUT/<data set>/<features>/<method>/seed<k>/")
    p.add_argument(
        "--resume",
        action=BooleanOptionalAction,
        default=True,
        help="continue an unfinished run and read back a finished one; --no-resume starts anew (resume)",
    )
    p.add_argument(
        "--diagnostics",
        action=BooleanOptionalAction,
        default=True,
        help="also print the row labelled 'selected on test'; it costs one evaluation an epoch (yes)",
    )
    p.add_argument("--page", action="store_true", help="also write page/, which shows why test images got their names")
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
    """Parse, load, train every seed, print the table."""
    args = parser(dataset, description).parse_args(argv)
    name = "CUB50" if getattr(args, "split", "ps") == "cub50" else dataset
    method = find_method(args.method)
    recipe, epochs = flags.recipe_from(args, method, name)
    from core.features.devices import resolve_device

    device = str(resolve_device(args.device))
    if dataset == "DEMO":
        from core.demo.setup import prepare_demo

        prepare_demo(args.data_root or Path("data"))

    # what parsing and --help do not need: pandas, scipy and matplotlib take seconds
    from core.experiments.inputs import load_inputs

    inputs = load_inputs(name, data_root=args.data_root, features=args.features, w2v=args.w2v, device=device)
    return run_seeds(args, inputs, recipe, epochs, args.data_root or paths.DEFAULT_ROOT)


def run_seeds(args: argparse.Namespace, inputs: Inputs, recipe: Any, epochs: int, data_root: Path) -> int:
    """Train every seed and print the table; OWN_ours.py ends in it too."""
    from core.experiments.identity import run_config
    from core.experiments.results import row_of
    from core.experiments.run import run
    from core.files.atomic import write_bytes
    from core.reporting.run_attention import draw_attention
    from core.reporting.tables import table

    folder = args.out / inputs.dataset / inputs.variant / args.method
    results = []
    for seed in flags.seeds_of(args):
        config = run_config(
            inputs, args.method, recipe, seed=seed, select=args.select, epochs=epochs, precision=args.precision
        )
        out = folder / f"seed{seed}"
        results.append(run(config, inputs, out, resume=args.resume, diagnostics=args.diagnostics))
    text = table([row_of(result) for result in results])
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

        page = draw_page(first, inputs, args.data_root or paths.DEFAULT_ROOT, folder / "page")
        sys.stdout.write(f"page: {page}\n")
    return 0
