"""Command line of predict.py: photographs in, classes and reasons out."""

import csv
import io
import logging
import sys
from argparse import ArgumentTypeError, Namespace
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from core.commands.parser import DEVICE, Parser, finite, whole
from core.files.atomic import write_bytes
from core.files.errors import UserError
from core.files.memory import keep_memory
from core.inference.answer import ClassScore, Prediction

log = logging.getLogger(__name__)
# of the table's header
BEGINNING = ("image", "class", "side", "score", "probability", "margin", "none", "likely", "group", "attributes")


def parser(description: str | None) -> Parser:
    p = Parser(description)
    add, sides = p.add_argument, ("all", "seen", "unseen")
    add("run", type=Path, help="a finished run, RESULTS/<data set>/<features>/<method>/seed<k>, or a folder above one")
    add("images", type=Path, nargs="*", help="photographs, and folders of them (searched to the bottom)")
    add("--top", type=whole(1), default=5, help="classes in an answer (%(default)s)")
    add("--among", choices=sides, default="all", help="candidates: seen classes, unseen ones, or all (%(default)s)")
    add("--gamma", type=finite, metavar="X", help="points added to classes without photographs (validation chooses)")
    none = "share of photographs of the classes that may be called none of these; 0: none is (%(default)s)"
    add("--none-rate", type=float, default=0.1, metavar="SHARE", help=none)
    add("--out", type=_named(".csv"), metavar="FILE.csv", help="table, a row an image; without it answers are printed")
    said = "more classes: a sheet class,<attribute>,..., or a folder with attributes.csv, images/<class>/, or both"
    add("--add-classes", type=Path, metavar="FILE_OR_FOLDER", help=said)
    add("--explain", type=Path, metavar="FOLDER", help="a page that says why, to be opened in a browser")
    add("--export", type=_named(".onnx"), metavar="FILE.onnx", help="the model as ONNX: regions in, scores with γ out")
    add("--with-backbone", action="store_true", help="with --export: pixels in instead of regions")
    add("--weights", type=Path, action="append", help="the backbone's weights file, where the run's were a file")
    add("--device", default="auto", help=DEVICE)
    add("--batch-size", type=whole(1), default=32, help="images per forward pass (%(default)s)")
    return p


def _named(ending: str) -> Callable[[str], Path]:
    """Of a file that is written: no slip of the keyboard replaces a photograph, or a table that holds no answers."""

    def path(text: str) -> Path:
        begins = ",".join(BEGINNING[:3]).encode()
        if not text.lower().endswith(ending):
            raise ArgumentTypeError(f"{text}: its name must end in {ending}")
        if ending == ".csv" and Path(text).is_file() and not Path(text).read_bytes().startswith(begins):
            raise ArgumentTypeError(f"{text} is there and holds no answers of predict.py; choose another name")
        return Path(text)

    return path


def main(description: str | None, argv: Sequence[str] | None = None) -> int:
    args = parser(description).parse_intermixed_args(argv)
    keep_memory()
    # what parsing and --help do not need: torch takes seconds
    from core.inference.page import IMAGES, Item, check_replaceable, write_page
    from core.inference.predictor import Predictor, find_images
    from core.inference.trained import find_run

    if not 0 <= args.none_rate <= 1:
        raise UserError(f"--none-rate {args.none_rate:g}: a share is needed, from 0 to 1")
    if args.explain:
        check_replaceable(args.explain)
    run = find_run(args.run)
    if not args.images and args.export is None:
        raise UserError(f"no image given: name photographs or folders behind the run {run}")
    images = find_images(args.images) if args.images else []
    model = Predictor.load(
        run, weights=args.weights, device=args.device, gamma=args.gamma, none_rate=args.none_rate,
        batch_size=args.batch_size,
    )  # fmt: skip
    config, backbone = model.trained.config, model.trained.backbone["backbone"]
    log.info("run %s: %s on %s, features of %s", run, config["method"], config["dataset"], backbone)
    log.info("%s", model.trained.gamma_said())
    if args.add_classes:
        model.add_classes(args.add_classes)
    if args.export:
        from core.inference.export import export

        for talker in ("onnxscript", "onnx_ir", "torch.onnx"):
            logging.getLogger(talker).setLevel(logging.WARNING)
        log.info("%s", export(model, args.export, with_backbone=args.with_backbone))
    if not images:
        return 0
    items = list[Item]()

    def answers() -> Iterator[Prediction]:
        for names, x, errors in model.batches(images):
            made = model.answers((names, x, errors), top=args.top, among=args.among)
            if args.explain:
                good = [Item(picture=Path(a.image), x=own.cpu()) for own, a in zip(x, made, strict=True) if not a.error]
                items.extend(good[: IMAGES - len(items)])
            yield from made

    failed = _tell(answers(), len(images), args)
    if items:
        _, h, w = model.network.shape
        index = write_page(
            model.trained, items, args.explain, grid=(h, w), transform=model.network.transform,
            total=len(images) - len(failed), none_rate=args.none_rate,
        )  # fmt: skip
        sys.stdout.write(f"page: {index}\n")
    if failed:
        first, reason = next(iter(failed.items()))
        place = f" (their rows in {args.out} say why)" if args.out else ""
        raise UserError(f"{len(failed)} of {len(images)} images could not be read{place}, the first: {first}: {reason}")
    return 0


def _tell(answers: Iterator[Prediction], count: int, args: Namespace) -> dict[str, str]:
    """Print answers as they come, or write their table when the last is there; image and reason of unreadable ones."""
    failed, text = dict[str, str](), io.StringIO()
    table = csv.writer(text)
    table.writerow(header(args.top))
    for answer in tqdm(answers, "predict", count, unit="image", leave=False, disable=None):
        if answer.error:
            failed[answer.image] = answer.error
        if args.out:
            table.writerow(row_of(answer, args.top))
        else:
            sys.stdout.write("\n".join(lines_of(answer)) + "\n")
    if args.out:
        write_bytes(args.out, text.getvalue().encode("utf-8", "backslashreplace"))  # file names may hold anything
        log.info("%d answers in %s", count, args.out)
    return failed


def header(top: int) -> list[str]:
    parts = ("class", "side", "score", "probability")
    return [*BEGINNING, *(f"{what}_{k}" for k in range(2, top + 1) for what in parts), "error"]


def row_of(answer: Prediction, top: int) -> list[str]:
    """One row of the table."""
    cells = [cell for c in answer.classes for cell in (c.name, c.side, c.score, c.probability)]
    cells += [""] * (4 * top - len(cells))
    likely, none = "; ".join(answer.likely or ()), "none of these" if answer.none else ""
    group = answer.group and f"{answer.group[0]} {answer.group[1]:.3g}"
    more = (answer.margin, none, likely, group, _listed(answer.attributes, "; "))
    return [*map(_cell, (answer.image, *cells[:4], *more, *cells[4:], answer.error))]


def _cell(value: str | float | None) -> str:
    """As a spreadsheet shows it: it takes no text for a formula."""
    if isinstance(value, float):
        return f"{value:.6g}"
    return f"'{value}" if value and value[0] in "=+-@\t\r\n" else value or ""


def _listed(reasons: tuple[tuple[str, float], ...], between: str = ", ") -> str:
    return between.join(f"{words} {points:+.3g}" for words, points in reasons)


def lines_of(answer: Prediction) -> Iterator[str]:
    """An answer as a person reads it."""
    if answer.error:
        yield f"{answer.image}\n    cannot be read: {answer.error}"
        return
    first, *others = answer.classes
    ahead = "" if answer.margin is None else f", ahead by {answer.margin:.3g}"
    nearest = "none of these; the nearest: " if answer.none else ""
    yield f"{answer.image}\n    {nearest}{_named_with(first)}{ahead}"
    if answer.likely and len(answer.likely) > 1:
        yield f"    9 times in 10 one of: {', '.join(answer.likely[:8])}" + ", ..." * (len(answer.likely) > 8)
    if answer.group:
        yield f"    unsure; of its kind: {answer.group[0]} {answer.group[1]:.0%}"
    for said, reasons in (("for it", answer.attributes), ("against it", answer.against)):
        if reasons:
            yield f"    {said}: {_listed(reasons)}"
    if others:
        yield "    then: " + ", ".join(_named_with(c) for c in others)


def _named_with(c: ClassScore) -> str:
    """A class, its side, its score and how probable it is."""
    return f"{c.name} ({c.side}) {c.score:.4g}" + ("" if c.probability is None else f" {c.probability:.0%}")
