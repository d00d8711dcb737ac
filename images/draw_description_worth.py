"""Draws description_worth.png: accuracy on new classes over the number of photographs of each, with and without a
description.

    python images/draw_description_worth.py

The numbers are those of docs/description_worth.csv, which joins what ``python -m studies.description_worth`` wrote for
each set of photographs. Bands are 95 % intervals over classes.
"""

from pathlib import Path

import pandas as pd

from core.reporting.canvas import canvas, style

ROOT = Path(__file__).resolve().parents[1]
LINES = (("both", "described and shown"), ("photographs", "shown by photographs alone"))


def main() -> None:
    """One panel a set of photographs."""
    rows = pd.read_csv(ROOT / "docs" / "description_worth.csv")
    rows = rows[(rows.k == 3) & rows.T1.notna()]
    panels = rows.of.nunique()
    size = (1.6 + 3.2 * panels, 3.6)
    with canvas(ROOT / "images" / "description_worth.png", *size, 1, panels, sharey=True) as (_, axes):
        for axis, (of, part) in zip(axes[0], rows.groupby("of", sort=False), strict=True):
            told = part[part.by == "description"].iloc[0]
            shots = sorted(part[part.n > 0].n.unique())
            ends = [-0.4, len(shots) + 0.4]
            axis.fill_between(ends, told.T1_low, told.T1_high, color="0.5", alpha=0.13, linewidth=0)
            axis.plot(ends, [told.T1] * 2, color="0.35", linestyle=":", label="described alone")
            for number, (by, label) in enumerate(LINES):
                own = part[part.by == by].sort_values("n")
                x, look = range(1, 1 + len(own)), style(number)
                if by == "both":
                    own, x = pd.concat([told.to_frame().T, own]).astype({"T1": float}), range(len(own) + 1)
                low, high = own.T1_low.astype(float), own.T1_high.astype(float)
                axis.fill_between(x, low, high, color=look["color"], alpha=0.15, linewidth=0)
                axis.plot(x, own.T1, label=label, markeredgecolor="white", linewidth=2, **look)
            axis.set_xticks(range(len(shots) + 1), ["0", *map(str, shots)])
            axis.set(title=of, xlabel="photographs of each new class", xlim=ends)
            axis.title.set_fontsize(10)
            axis.grid(color="0.92", linewidth=0.6)
        axes[0, 0].set_ylabel("accuracy among new classes (%)")
        axes[0, -1].legend(fontsize=8, loc="lower right")
    (ROOT / "images" / "description_worth.pdf").unlink()


if __name__ == "__main__":
    main()
