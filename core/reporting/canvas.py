"""What all figures share: a canvas without pyplot, colours that print, files that repeat."""

import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from core.files.atomic import atomic_path

# Okabe and Ito's palette, told apart with any colour vision; markers and dashes tell lines apart without colour
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#7F7F7F")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<")
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)), (0, (1, 1)), (0, (3, 3)))


@contextmanager
def canvas(
    out: Path, width: float, height: float, rows: int = 1, columns: int = 1, **options: Any
) -> Iterator[tuple[Figure, Any]]:
    """A figure of that many inches and its axes (rows,columns), written to ``out`` (PNG, and PDF beside it) at the end.

    Whatever the caller's settings of matplotlib are, they are left alone, and equal figures give equal bytes.
    """
    look = {k: v for k, v in matplotlib.rcParamsDefault.items() if not k.startswith("backend")}
    look |= {"font.sans-serif": ["DejaVu Sans"], "axes.spines.top": False, "axes.spines.right": False}
    with matplotlib.rc_context(look | {"axes.axisbelow": True, "legend.frameon": False}):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, figure.subplots(rows, columns, squeeze=False, **options)
        unsaid: dict[str, Any] = {".png": ["Software"], ".pdf": ["Creator", "Producer", "CreationDate"]}
        for suffix, keys in unsaid.items():
            with atomic_path(out.with_suffix(suffix)) as temporary:
                figure.savefig(temporary, format=suffix[1:], dpi=150, metadata=dict.fromkeys(keys))


def printable(text: str, longest: int = 40) -> str:
    """``text`` cut at ``longest``, and no formula."""
    return (f"{text[: longest - 1]}…" if len(text) > longest else text).replace("$", r"\$")


def wrapped(text: str, width: int) -> str:
    """:func:`printable` in lines of that many letters, three at most: for titles and legends."""
    cut = printable(text, 3 * width - 6).replace(r"\$", "$")
    return "\n".join(textwrap.wrap(cut, width)).replace("$", r"\$")


def style(number: int) -> dict[str, Any]:
    """Colour, marker and dashes of the line of that number."""
    looks = {"color": COLOURS, "marker": MARKERS, "linestyle": DASHES}
    return {key: choices[number % len(choices)] for key, choices in looks.items()}
