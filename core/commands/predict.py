"""Command line of predict.py: photographs in, classes and reasons out."""

from __future__ import annotations

import csv
import json
import logging
import sys
from argparse import ArgumentTypeError
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.commands.parser import DEVICE, Parser, whole
from core.files.errors import UserError

if TYPE_CHECKING:
    from core.inference.predictor import Prediction, Predictor

log = logging.getLogger(__name__)
SIDES = ("all", "seen", "unseen")


def parser(description: str | None) -> Parser:
    p = Parser(description)
    add = p.add_argument
    add("run", type=Path, help="folder of a finished run: RESULTS/<data set>/<features>/<method>/seed<k>")
    add("images", type=Path, nargs="*", help="photographs, and folders of them (searched to the bottom)")
    add("--top", type=whole(1), default=5, help="classes in an answer (%(default)s)")
    add("--among", choices=SIDES, default="all", help="candidates: seen classes, unseen ones, or all (%(default)s)")
    add(
        "--out", type=_named(".csv"), metavar="FILE.csv", help="table, one row an image; without it answers are printed"
    )
    add("--json", type=_named(".jsonl"), metavar="FILE.jsonl", help="the same as JSON lines")
    add("--add-classes", type=Path, metavar="FILE.csv", help="more classes by description alone: class,<attribute>,...")
    add("--explain", type=Path, metavar="FOLDER", help="a page that says why, to be opened in a browser")
    add(
        "--export",
        type=_named(".onnx"),
        metavar="FILE.onnx",
        help="write the model as ONNX: regions in, calibrated scores out",
    )
    add("--with-backbone", action="store_true", help="with --export: pixels in instead of regions")
    add("--weights", type=Path, help="the backbone's weights file, where the run's were a file")
    add("--device", default="auto", help=DEVICE)
    add("--workers", type=whole(1), help="decoding threads (one per core, 2 to 16)")
    add("--batch-size", type=whole(1), default=32, help="images per forward pass (%(default)s)")
    return p


def _named(ending: str) -> Callable[[str], Path]:
    """Of a file that is written: no slip of the keyboard replaces a photograph or a sheet."""

    def path(text: str) -> Path:
        if not text.lower().endswith(ending):
            raise ArgumentTypeError(f"{text}: its name must end in {ending}")
        return Path(text)

    return path


def main(description: str | None, argv: Sequence[str] | None = None) -> int:
    args = parser(description).parse_intermixed_args(argv)
    if not args.images and args.export is None:
        raise UserError("no image given: name photographs or folders behind the run")
    if args.with_backbone and args.export is None:
        raise UserError("--with-backbone belongs to --export FILE.onnx")
    if args.explain and args.add_classes:
        raise UserError(
            "--explain shows the run's own classes, and its page has a form that adds one; leave --add-classes out, or "
            "write the answers with --out"
        )

    for table, begins in ((args.out, "image,class,side,"), (args.json, '{"image": ')):
        _check_replaceable(table, begins)
    import core  # what parsing and --help do not need: torch takes seconds
    from core.inference.predictor import find_images

    images = find_images(args.images) if args.images else []
    model = core.load(
        args.run, weights=args.weights, device=args.device, batch_size=args.batch_size, workers=args.workers
    )
    if args.add_classes:
        _add(model, args.add_classes)
    if args.export:
        from core.inference.export import export

        for talker in ("onnxscript", "onnx_ir", "torch.onnx"):
            logging.getLogger(talker).setLevel(logging.WARNING)
        log.info("%s", export(model, args.export, with_backbone=args.with_backbone))
    if not images:
        return 0
    failed = _write(model, images, args.out, args.json, top=args.top, among=args.among)
    if args.explain:
        _explain(model, [path for path in images if str(path) not in failed], args.explain)
    if failed:
        first, reason = next(iter(failed.items()))
        place = f" (their rows in {args.out or args.json} say why)" if args.out or args.json else ""
        raise UserError(f"{len(failed)} of {len(images)} images could not be read{place}, the first: {first}: {reason}")
    return 0


def _check_replaceable(table: Path | None, begins: str) -> None:
    """Refuse to write answers over anything but answers."""
    if table is None or not table.is_file():
        return
    with open(table, "rb") as handle:
        head = handle.read(len(begins))
    if head and head != begins.encode():
        raise UserError(f"{table} is there and holds no answers of predict.py; choose another name, or move it away")


def _add(model: Predictor, path: Path) -> None:
    """The classes of a CSV file."""
    import pandas as pd

    from core.datasets.sheets import read_attributes

    if not path.is_file():
        raise UserError(f"--add-classes {path}: there is no such file")
    sheet = read_attributes(path)
    frame = pd.DataFrame(sheet.values, columns=sheet.attributes)
    frame.insert(0, "class", sheet.classes, allow_duplicates=True)
    try:
        model.add_classes(frame)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    log.info("%d classes added by their description: %s", len(sheet.classes), ", ".join(sheet.classes[:5]))


def _write(
    model: Predictor, images: list[Path], table: Path | None, lines: Path | None, *, top: int, among: str
) -> dict[str, str]:
    """Predict, and write answers as they come; image and reason of those that could not be read."""
    from tqdm import tqdm

    from core.files.atomic import atomic_path

    failed: dict[str, str] = {}
    with ExitStack() as stack:

        def opened(path: Path) -> Any:
            temporary = stack.enter_context(atomic_path(path))
            return stack.enter_context(open(temporary, "w", encoding="utf-8", newline=""))

        rows = csv.writer(opened(table)) if table else None
        text = opened(lines) if lines else None
        if rows:
            rows.writerow(header(top))
        answers = model.predict_all(images, top=top, among=among)
        for answer in tqdm(answers, total=len(images), unit="image", desc="predict", leave=False, disable=None):
            if answer.error:
                failed[answer.image] = answer.error
            if rows:
                rows.writerow(row_of(answer, top))
            if text:
                text.write(json.dumps(as_json(answer), ensure_ascii=False) + "\n")
            if not rows and not text:
                sys.stdout.write("\n".join(said(answer)) + "\n")
    for path in filter(None, (table, lines)):
        log.info("%d answers in %s", len(images), path)
    return failed


def header(top: int) -> list[str]:
    more = [f"{what}_{k}" for k in range(2, top + 1) for what in ("class", "side", "score")]
    return ["image", "class", "side", "score", "margin", "attributes", *more, "error"]


def row_of(answer: Prediction, top: int) -> list[str]:
    """One row of the table; nothing in it is a formula to a spreadsheet."""
    cells = [[_plain(c.name), c.side, f"{c.score:.6g}"] for c in answer.classes]
    cells += [["", "", ""]] * (top - len(cells))
    spoke = "; ".join(f"{name} {value:+.3g}" for name, value in answer.attributes)
    margin = "" if answer.margin is None else f"{answer.margin:.6g}"
    rest = [cell for some in cells[1:] for cell in some]
    return [_plain(answer.image), *cells[0], margin, _plain(spoke), *rest, _plain(answer.error)]


def _plain(text: str) -> str:
    """Text that a spreadsheet does not take for a formula, and that can be written: file names may hold anything."""
    text = text.encode("utf-8", "backslashreplace").decode()
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r", "\n") else text


def as_json(answer: Prediction) -> dict[str, Any]:
    content = {k: v for k, v in asdict(answer).items() if k == "image" or (k == "error") == bool(answer.error)}
    content["image"] = _encodable(answer.image)
    if "attributes" in content:
        content["attributes"] = [{"name": name, "value": value} for name, value in answer.attributes]
    if answer.error:
        content["error"] = _encodable(answer.error)
    return content


def _encodable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def said(answer: Prediction) -> Iterator[str]:
    """An answer as a person reads it."""
    if answer.error:
        yield f"{answer.image}\n    cannot be read: {answer.error}"
        return
    first, *others = answer.classes
    ahead = "" if answer.margin is None else f", ahead by {answer.margin:.3g}"
    yield f"{answer.image}\n    {first.name} ({first.side}) {first.score:.4g}{ahead}"
    if answer.attributes:
        yield "    for it: " + ", ".join(f"{name} {value:+.2g}" for name, value in answer.attributes)
    if others:
        yield "    then: " + ", ".join(f"{c.name} ({c.side}) {c.score:.4g}" for c in others)


def _explain(model: Predictor, images: list[Path], folder: Path) -> None:
    """The page of the images that could be read."""
    from core.inference import page

    items = [page.Item(picture=path, x=x.cpu()) for path, x in model.regions_of(images[: page.IMAGES])]
    _, h, w = model.network.shape
    index = page.write_page(model.trained, items, folder, grid=(h, w), transform=model.network.transform)
    sys.stdout.write(f"page: {index}\n")
