"""Draws reasons.png, README's first picture: a photograph, the class it got, and what the score is made of.

    python images/draw_reasons.py RUN PHOTOGRAPH --weights BACKBONE

The numbers are those of the page of ``predict.py RUN PHOTOGRAPH --explain``; RUN is one finished run of ``vsmr``.
"""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from PIL import Image

import core
from core.inference.explain import explain
from core.inference.names import shown_attribute, shown_class

INK, GREY, UNSEEN, SEEN, AGAINST = "#1f2933", "#5b6773", "#2670ae", "#9aa7b4", "#c2680f"
SHOWN = 5  # bars of a group


def bars(ax: Axes, title: str, rows: list[tuple[str, float, str]], digits: int) -> None:
    """Named bars from the top down, each with its number; names stand left of the axes, the title above them."""
    ax.barh(range(len(rows)), [value for _, value, _ in rows], color=[color for _, _, color in rows], height=0.62)
    top, low = max(value for _, value, _ in rows), min(0.0, min(value for _, value, _ in rows))
    for i, (name, value, _) in enumerate(rows):
        ax.text(low - 0.03 * top, i, name, ha="right", va="center", size=10.5, color=INK)
        ax.text(max(value, 0) + 0.02 * top, i, f"{value:.{digits}f}", va="center", size=9.5, color=GREY)
    ax.set(ylim=(len(rows) - 0.4, -0.6), xlim=(low, low + 1.25 * (top - low)))
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
    answer = model.predict(args.photograph, top=SHOWN)
    (batch,) = model.batches([args.photograph])
    trained = model.trained
    found = explain(trained, batch.x)
    c = trained.classes.index(answer.classes[0].name)
    attributes, seen = found.attributes(0, c), found.seen_classes(0, c)
    assert seen is not None and found.own is not None and answer.classes[0].side == "unseen"
    own = float(found.own[0, c])
    gamma = answer.classes[0].score - float(attributes.sum() + seen.sum()) - own
    assert abs(gamma - trained.gamma) < 1e-3  # the parts are the score

    figure = plt.figure(figsize=(12.4, 4.4), dpi=105, facecolor="white")
    ax = figure.add_axes((0.006, 0.13, 0.256, 0.73))
    ax.imshow(Image.open(args.photograph).convert("RGB"))
    ax.axis("off")
    figure.text(0.008, 0.93, shown_class(answer.classes[0].name), size=16, weight="bold", color=UNSEEN, va="center")
    figure.text(0.008, 0.075, "not one photograph of it in training:", size=10.5, color=INK)
    figure.text(
        0.008, 0.022, f"described by {len(trained.attributes)} attributes, and recognised", size=10.5, color=INK
    )

    rows = [(shown_class(k.name), k.score, UNSEEN if k.side == "unseen" else SEEN) for k in answer.classes]
    bars(figure.add_axes((0.485, 0.56, 0.165, 0.31)), f"best {SHOWN} of {len(trained.classes)} classes", rows, 1)
    figure.text(0.485, 0.505, "blue: unseen, grey: seen in training", size=9, color=GREY)
    parts = [
        (f"{len(attributes)} attributes", float(attributes.sum()), UNSEEN),
        (f"likeness to {len(seen)} seen classes", float(seen.sum()), UNSEEN),
        ("nearness to seen classes", own, UNSEEN if own > 0 else AGAINST),
        ("calibration γ", gamma, UNSEEN),
    ]
    bars(figure.add_axes((0.485, 0.1, 0.165, 0.25)), f"its score {answer.classes[0].score:.1f} is the sum of", parts, 1)
    best = attributes.topk(SHOWN).indices.tolist()
    rows = [(shown_attribute(trained.attributes[k]), float(attributes[k]), UNSEEN) for k in best]
    bars(figure.add_axes((0.862, 0.56, 0.135, 0.31)), "attributes that spoke most for it", rows, 2)
    members = trained.space.seen.tolist()
    most = seen.abs().topk(SHOWN).indices.tolist()
    rows = [
        (shown_class(trained.classes[members[s]]), float(seen[s]), UNSEEN if seen[s] > 0 else AGAINST) for s in most
    ]
    bars(figure.add_axes((0.862, 0.04, 0.135, 0.31)), "seen classes it is most like (or unlike)", rows, 1)
    figure.savefig(Path(__file__).with_name("reasons.png"), metadata={"Software": None})


if __name__ == "__main__":
    main()
