"""Draws reasons.png, README's first picture: a photograph, the class it got, and what the score is made of.

    python images/draw_reasons.py RUN PHOTOGRAPH --weights BACKBONE

The numbers are those of the page of ``predict.py RUN PHOTOGRAPH --explain``; RUN is one finished run of ``vsmr``.
"""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from PIL import Image

import core
from core.inference.names import shown_class, shown_reason

FOR, AGAINST = "#e07b00", "#0063c7"  # as on the page
INK, GREY, UNSEEN, SEEN = "#1f2933", "#5b6773", "#2e7d5b", "#9aa7b4"
SHOWN = 5  # bars of a group
COVER = 0.85  # of the map over the photograph


def bars(ax: Axes, title: str, rows: list[tuple[str, float, str]], digits: int) -> None:
    """Named bars from the top down, each with its number; names stand left of the axes, the title above them."""
    ax.barh(range(len(rows)), [value for _, value, _ in rows], color=[color for _, _, color in rows], height=0.62)
    low, top = min(0.0, *(value for _, value, _ in rows)), max(0.0, *(value for _, value, _ in rows))
    span = top - low
    for i, (name, value, _) in enumerate(rows):
        ax.text(low - 0.03 * span, i, name, ha="right", va="center", size=9.5, color=INK)
        ax.text(max(value, 0) + 0.02 * span, i, f"{value:.{digits}f}", va="center", size=9.5, color=GREY)
    ax.set(ylim=(len(rows) - 0.4, -0.6), xlim=(low, low + 1.25 * span))
    ax.axis("off")
    x, y = ax.get_position().x0 - 0.195, ax.get_position().y1 + 0.035
    ax.figure.text(x, y, title, size=11.5, weight="bold", color=INK, va="center")


def main() -> None:
    """Predict, take the score apart, draw."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("run", type=Path)
    p.add_argument("photograph", type=Path)
    p.add_argument("--weights", required=True, help="the backbone's")
    args = p.parse_args()
    model = core.load(args.run, weights=args.weights, device="cpu")
    answer, found, trained = model.predict(args.photograph, top=SHOWN), model.explain(args.photograph), model.trained
    c = trained.classes.index(answer.classes[0].name)
    attributes = found.attributes(0, c)
    corrections = {name: float(values[0, c]) for name, values in found.corrections.items()}
    gamma = trained.gamma if answer.classes[0].side == "unseen" else 0.0
    assert found.g is not None
    assert abs(float(attributes.sum()) + sum(corrections.values()) + gamma - answer.classes[0].score) < 1e-3

    figure = plt.figure(figsize=(12.4, 4.4), dpi=105, facecolor="white")
    ax = figure.add_axes((0.006, 0.13, 0.256, 0.73))
    picture = Image.open(args.photograph).convert("RGB")
    ax.imshow(picture.convert("L"), cmap="gray")
    _, h, w = model.network.shape
    share = model.network.transform.crop / model.network.transform.resize
    side, cells = share * min(picture.size), found.places(0, c).numpy().reshape(h, w, 1)
    left, top = (picture.width - side) / 2, (picture.height - side) / 2
    colours = np.where(cells < 0, to_rgb(AGAINST), to_rgb(FOR))
    drawn = np.concatenate([colours, COVER * np.abs(cells) / np.abs(cells).max()], axis=2)
    ax.imshow(drawn, extent=(left, left + side, top + side, top), interpolation="nearest")
    ax.set(xlim=(0, picture.width), ylim=(picture.height, 0))
    ax.axis("off")
    figure.text(0.008, 0.93, shown_class(answer.classes[0].name), size=16, weight="bold", color=UNSEEN, va="center")
    figure.text(0.008, 0.075, "orange: where its attributes are seen", size=10.5, color=INK)
    figure.text(0.008, 0.022, "blue: what is seen there speaks against it", size=10.5, color=INK)

    rows = [(shown_class(k.name), k.score, UNSEEN if k.side == "unseen" else SEEN) for k in answer.classes]
    bars(figure.add_axes((0.472, 0.56, 0.1, 0.31)), f"best {SHOWN} of {len(trained.classes)} classes", rows, 1)
    figure.text(0.472, 0.505, "green: unseen, grey: seen in training", size=9, color=GREY)
    parts = [(f"{len(attributes)} attributes", float(attributes.sum())), *corrections.items(), ("calibration γ", gamma)]
    rows = [(name, value, FOR if value > 0 else AGAINST) for name, value in parts]
    bars(figure.add_axes((0.472, 0.1, 0.1, 0.25)), f"its score {answer.classes[0].score:.1f} is the sum of", rows, 1)
    for low, sign, title in ((0.56, 1, "attributes that speak most for it"), (0.04, -1, "and most against it")):
        best, colour = (sign * attributes).topk(SHOWN).indices.tolist(), FOR if sign > 0 else AGAINST
        named = [shown_reason(trained.attributes[k], float(found.g[0, k])) for k in best]
        rows = [(name, float(attributes[k]), colour) for name, k in zip(named, best, strict=True)]
        bars(figure.add_axes((0.862, low, 0.135, 0.31)), title, rows, 2)
    figure.savefig(Path(__file__).with_name("reasons.png"), metadata={"Software": None})


if __name__ == "__main__":
    main()
