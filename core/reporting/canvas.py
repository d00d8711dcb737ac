"""What all figures share: a canvas without pyplot, colours that print, text that every font has, files that repeat.

No global state of matplotlib is touched: no backend is chosen and no setting outlives a call.
"""

from __future__ import annotations

import functools
import textwrap
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib import font_manager
from matplotlib.figure import Figure

from core.files.atomic import atomic_path

# Okabe and Ito's palette, told apart with any colour vision; markers and dashes tell lines apart without colour
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#7F7F7F")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<")
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)), (0, (1, 1)), (0, (3, 3)))
MISSING = "\ufffd"  # in place of a letter that the font lacks
_DPI = 150
_FONT = "DejaVu Sans"  # comes with matplotlib


@contextmanager
def drawing() -> Iterator[None]:
    """Draw with matplotlib's own defaults, whatever the caller's settings are; they are put back afterwards."""
    with matplotlib.rc_context():
        matplotlib.rcParams.update({k: v for k, v in matplotlib.rcParamsDefault.items() if not k.startswith("backend")})
        matplotlib.rcParams.update({"font.sans-serif": [_FONT], "axes.spines.top": False, "axes.spines.right": False})
        yield


def canvas(width: float, height: float, rows: int = 1, columns: int = 1, **options: Any) -> tuple[Figure, Any]:
    """A figure of that many inches and its axes (rows,columns)."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def save(figure: Figure, out: Path) -> None:
    """Write ``out`` as PNG and, under the same name, as PDF; equal figures give equal bytes.

    Raises:
        UserError: the place cannot be written.
    """
    for suffix, metadata in ((".png", {"Software": None}), (".pdf", dict.fromkeys(("Creator", "Producer")))):
        made: dict[str, Any] = {**metadata, "CreationDate": None} if suffix == ".pdf" else metadata
        with atomic_path(out.with_suffix(suffix)) as temporary:
            figure.savefig(temporary, format=suffix[1:], dpi=_DPI, metadata=made)


@functools.cache
def _letters() -> frozenset[int]:
    return frozenset(font_manager.get_font(font_manager.findfont(_FONT)).get_charmap())


def printable(text: str, longest: int = 40) -> str:
    """``text`` as a figure can show it: letters that the font lacks replaced by �, cut at ``longest``, no formulas."""
    return _plain(_cut(text, longest))


def wrapped(text: str, width: int) -> str:
    """:func:`printable` in lines of that many letters, three at most: for titles and legends."""
    return "\n".join(map(_plain, textwrap.wrap(_cut(text, 3 * width - 6), width)))


def _cut(text: str, longest: int) -> str:
    shown = []
    for letter in text:
        hidden = unicodedata.category(letter) in ("Cc", "Cf", "Cs", "Co", "Cn")
        shown.append(MISSING if hidden or ord(letter) not in _letters() else letter)
    cut = "".join(shown)
    return f"{cut[: longest - 1]}…" if len(cut) > longest else cut


def _plain(text: str) -> str:
    return text.replace("$", r"\$")


def style(number: int) -> dict[str, Any]:
    """Colour, marker and dashes of the line of that number."""
    return {
        "color": COLOURS[number % len(COLOURS)],
        "marker": MARKERS[number % len(MARKERS)],
        "linestyle": DASHES[number % len(DASHES)],
    }
