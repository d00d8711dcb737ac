"""The tables: the standard row on top, everything else under its own label."""

from __future__ import annotations

from typing import Any

import numpy as np

from core.reporting.related_work import RELATIVES

_KEYS = ("T1", "U", "S", "H", "AUSUC")


def _row(name: str, runs: list[dict[str, Any]], note: str) -> str:
    cells = []
    for key in _KEYS:
        values = np.array([r[key] for r in runs if key in r]) * 100
        spread = f" ± {values.std(ddof=1):.1f}" if len(values) > 1 else ""
        cells.append(f"{values.mean():.1f}{spread}" if len(values) else "-")
    return f"| {name} | " + " | ".join(cells) + f" | {note} |"


def table(dataset: str, results: list[dict[str, Any]]) -> str:
    """The final Markdown table of several seeds of one method (percent, mean ± standard deviation over seeds)."""
    first = results[0]
    method = first["config"]["method"]
    provenance = first["config"]["features"]
    features = f"{provenance.get('backbone', 'unknown')} {provenance.get('regions', '')}".strip()
    epochs = ", ".join(str(r["chosen"]["epochs"]) for r in results)
    gammas = ", ".join(f"{r['standard']['gamma']:.3g}" for r in results)
    lines = [
        f"## {dataset}: {method}, {len(results)} seed{'s' if len(results) > 1 else ''}, features {features}",
        "",
        "| method | T1 | U | S | H | AUSUC | how |",
        "|---|---|---|---|---|---|---|",
        _row(f"**{method}**", [r["standard"] for r in results], "standard: inductive, per-class, no choice on test"),
    ]
    on_test = [r["selected_on_test"] for r in results if r.get("selected_on_test")]
    if on_test:
        lines.append(_row(method, on_test, "SELECTED ON TEST (epoch and γ): not comparable"))
    published = [r["published_procedure"] for r in results if r.get("published_procedure")]
    if published:
        lines.append(_row(method, published, "PUBLISHED PROCEDURE: transductive, sample average; not comparable"))
    source = dataset if dataset in RELATIVES else None
    for name, t1, u, s, h, kind, where in RELATIVES.get(source or "", []):
        cells = " | ".join("-" if v is None else f"{v:.1f}" for v in (t1, u, s, h))
        lines.append(f"| {name} (as published) | {cells} | - | {kind}; {where} |")
    lines += [
        "",
        f"epochs {epochs}; γ {gammas}; chosen: {first['chosen']['how']}.",
        f"time per seed: {np.mean([r['seconds'] for r in results]):.0f} s on {first['where']['device']}.",
    ]
    lines += [f"note: {note}" for note in first["notes"]]
    if source and provenance.get("backbone") not in ("resnet101", "ResNet_101"):
        lines.append("note: not ResNet-101 features; the published rows are on other features and do not compare.")
    return "\n".join(lines)
