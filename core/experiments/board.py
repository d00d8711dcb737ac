"""The board: results that others can send, one small file a run, checked without the run.

BOARD/<data set>/<features>/<method>/seed<k>.json has a run's settings, choices and numbers without its machine, and of
its test images what every metric follows from: of each class its images and their accuracy, seen classes first;
``right``, the class numbers in that order of the images that are named right on their side, ascending in margin (commas
join equal margins); ``passed``, how many of these margins γ has reached, and the two ``between`` which it lies.
BOARD/digests.json lists the codes, features, vectors, splits and ways to choose that are known: a new line there is
what a reviewer looks at. A check is no proof, but whatever it lets pass can be run again.
"""

import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from core.datasets.registry import OWN
from core.experiments.identity import RunConfig
from core.experiments.inputs import variant_of
from core.experiments.results import read_file, read_result, read_scores, row_of, seal
from core.files.atomic import read_json, write_bytes
from core.files.errors import UserError
from core.training.evaluation import curve_from_compact, metrics_from_compact, per_class_accuracy, predictions

BOARD = Path("results/board")
METRICS = ("T1", "U", "S", "H", "AUSUC")
_KEPT = ("epoch", "val_AUSUC", "val_gamma", "val_spread")  # of a row of the validation history, and its settings
_ROW = {
    *("config", "standard", "classes", "environment", "chosen", "history", "notes", "seconds", "processor_seconds"),
    *("right", "passed", "between", "sha256"),
}


def row_from(folder: Path) -> dict[str, Any]:
    """A finished run as a row of the board."""
    result, scores = read_result(folder / "metrics.json"), read_scores(folder)
    table = pd.read_csv(io.BytesIO(read_file(folder, "per_class.csv")), dtype={"class": str}, keep_default_na=False)
    labels, side, margin = scores["labels"], scores["side"], scores["margin"].astype(np.float64)
    numbers = np.concatenate([np.unique(labels[side == s]) for s in (0, 1)])
    place = np.zeros(numbers.max() + 1, dtype=int)
    place[numbers] = np.arange(len(numbers))
    hit = np.where(side, scores["best_unseen"], scores["best_seen"]) == labels
    order = np.argsort(margin[hit], kind="stable")
    thresholds, starts = np.unique(margin[hit][order], return_index=True)
    ties = np.split(place[labels[hit][order]], starts[1:]) if len(thresholds) else []
    passed = int(np.searchsorted(thresholds, result["standard"]["gamma"], side="right"))
    history = [row for row in result["history"]["validation"] if "val_AUSUC" in row]  # what could be chosen
    return seal({
        **{key: result[key] for key in ("config", "notes", "seconds", "processor_seconds")},
        "chosen": {key: value for key, value in result["chosen"].items() if key != "certainty"},
        "history": [{k: v for k, v in row.items() if k in _KEPT or k.startswith("set_")} for row in history],
        "standard": {key: result["standard"][key] for key in (*METRICS, "gamma")},
        "environment": {key: result["environment"][key] for key in ("torch", "device", "threads")},
        "classes": {
            s: {r.name: [r.images, r.accuracy] for r in rows.rename(columns={"class": "name"}).itertuples()}
            for s, rows in table.groupby("side")
        },
        "right": " ".join(",".join(map(str, tie)) for tie in ties),
        "passed": passed,
        "between": [float(thresholds[i]) if 0 <= i < len(thresholds) else None for i in (passed - 1, passed)],
    })  # fmt: skip


def arrays_of(row: dict[str, Any]) -> dict[str, np.ndarray]:
    """What core.training.evaluation.compact made of the run's images, the margin in ranks (γ: ``passed`` - 0.5)."""
    images = np.array([n for side in ("seen", "unseen") for n, _ in row["classes"][side].values()])
    ties = [[int(number) for number in tie.split(",")] for tie in row["right"].split()]
    hit = np.array([number for tie in ties for number in tie], dtype=int)
    wrong = np.repeat(np.arange(len(images)), images - np.bincount(hit, minlength=len(images)))
    labels = np.concatenate([hit, wrong])
    side = labels >= len(row["classes"]["seen"])
    named = np.concatenate([hit, np.full(len(wrong), -1)])
    margin = np.concatenate([np.repeat(np.arange(len(ties)), [len(tie) for tie in ties]), np.zeros(len(wrong))])
    return {
        "labels": labels, "side": side, "margin": margin,
        "best_seen": np.where(side, -1, named), "best_unseen": np.where(side, named, -1),
    }  # fmt: skip


def collect_board(out: Path, board: Path = BOARD) -> int:
    """Write every finished run below OUT into the board, its digests into the list of those known, and check all."""
    known = _known(board)
    for path in sorted(out.rglob("metrics.json")):
        if read_result(path)["config"]["dataset"] == OWN.name:
            continue  # nobody else has its photographs
        row = row_from(path.parent)
        write_bytes(board.joinpath(*place_of(row)), (json.dumps(row, indent=1) + "\n").encode())
        for kind, stamp in _stamps(row).items():
            known[kind] = sorted({*known.get(kind, []), stamp})
    write_bytes(board / "digests.json", (json.dumps(known, indent=1, sort_keys=True) + "\n").encode())
    return len(read_board(board))


def read_board(board: Path = BOARD) -> list[dict[str, Any]]:
    """Every row of the board, checked.

    Raises:
        UserError: names each file that is no honest row, and why.
    """
    known, rows, said, histories = _known(board), [], [], dict[str, str]()
    for path in sorted(board.glob("*/*/*/*.json")):
        try:
            rows.append(row := read_json(path))
            wrong = list(_faults(row, path.relative_to(board).parts, known))
            history = json.dumps([place_of(row)[:3], row["history"]])  # each seed has a validation split of its own
            if row["history"] and (first := histories.setdefault(history, path.name)) != path.name:
                wrong.append(f"its validation is that of {first}: a copied seed")
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            wrong = [f"no row of the board ({type(error).__name__}: {error})"]
        said += [f"{path}: {'; '.join(wrong)}"] * bool(wrong)
    if said or not rows:
        raise UserError("\n  ".join([f"the board {board} has " + ("false rows:" if said else "no row"), *said]))
    return rows


def seconds_of_methods(board: Path) -> dict[str, float]:
    """Median processor seconds of a run, of the methods that have rows."""
    took: dict[str, list[float]] = {}
    for path in board.glob("*/*/*/seed*.json"):
        took.setdefault(path.parent.name, []).append(read_json(path)["processor_seconds"])
    return {method: float(np.median(seconds)) for method, seconds in took.items()}


def _known(board: Path) -> dict[str, list[str]]:
    path = board / "digests.json"
    return dict(read_json(path)) if path.is_file() else {}


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def made_how(config: dict[str, Any]) -> str:
    """Digest of how features were made, wherever that was.

    The same backbone gives the same regions on another processor but for their last bits, and those who send rows have
    another processor: such rows share a table, and each has the digest of its own features.
    """
    of_machine = ("torch_version", "device", "batch_size")
    return _digest({k: v for k, v in config["features"].items() if k not in of_machine})


def flat(row: dict[str, Any]) -> dict[str, Any]:
    """A row of the board as one of a table."""
    return row_of(row) | {"features_made": made_how(row["config"])}


def place_of(row: dict[str, Any]) -> tuple[str, str, str, str]:
    """Data set, features, method and file of a row."""
    config = row["config"]
    variant = variant_of(config["features"], made_how(config), config["vectors_sha256"], config["split_sha256"])
    return config["dataset"], variant, config["method"], f"seed{config['seed']}.json"


def _stamps(row: dict[str, Any]) -> dict[str, str]:
    """What must be known of a row, by kind: each digest with what must go with it."""
    config = row["config"]
    images = {side: {name: n for name, (n, _) in found.items()} for side, found in row["classes"].items()}
    return {
        "code": config["code"],
        "method code": f"{config['method']} {config['method_code']}",
        "features and their provenance": f"{config['features_sha256']} {_digest(config['features'])[:16]}",
        "vectors": config["vectors_sha256"],
        "split with these classes and images": f"{config['dataset']} {config['split_sha256']} {_digest(images)[:16]}",
        "way to choose": f"{config['select']}: {row['chosen']['how']}",
    }


def _faults(row: dict[str, Any], place: Sequence[str], known: dict[str, list[str]]) -> Iterator[str]:
    """What is false in a row that lies at ``place``."""
    if other := _ROW ^ row.keys():
        yield f"{', '.join(sorted(other))} missing or unknown"
        return
    config, chosen = RunConfig(**row["config"]), row["chosen"]
    yield from (f"unknown {kind}: {s}" for kind, s in _stamps(row).items() if s not in known.get(kind, []))
    took = row["seconds"] > 0 and row["processor_seconds"] > 0
    rules = {
        "changed since it was written (checksum)": seal(row) == row,
        f"it belongs to {'/'.join(place_of(row))}": place_of(row) == tuple(place),
        "seconds or epochs out of range": took and 0 <= chosen["epochs"] <= config.epochs,
    }
    if config.select == "val":
        V, unit = chosen["validation"], chosen["gamma_in_spreads"]
        best = max(row["history"], key=lambda r: r["val_AUSUC"])
        picked = {"epoch": chosen["epochs"]} | {f"set_{key}": value for key, value in chosen["recipe"].items()}
        highest = {key: value for key, value in best.items() if not key.startswith("val_")}
        counted = V["AUSUC"] == best["val_AUSUC"] and chosen["configurations"] == len(row["history"])
        shares, H = all(0 <= v <= 1 for v in V.values()), 2 * V["U"] * V["S"] - V["H"] * (V["U"] + V["S"])
        carried = config.gamma_splits > 1 or abs(unit * best["val_spread"] - best["val_gamma"]) < 1e-9
        gamma = chosen["gammas"][0] == best["val_gamma"] and unit * row["standard"]["gamma"] >= 0
        rules |= {
            "epochs or settings are not those of the highest AUSUC on validation": picked == highest,
            "validation is not what its history says": counted,
            "H of validation does not follow from its U and S": shares and abs(H) < 1e-9,
            f"seed {config.seed} was chosen on validation split {chosen['split']}": chosen["split"] == config.seed,
            "γ is not that of validation": carried and gamma,
        }
    yield from (said for said, true in rules.items() if not true)
    yield from _unlike(row)


def _unlike(row: dict[str, Any]) -> Iterator[str]:
    """What of a row's numbers does not follow from its images."""
    arrays, at, gamma = arrays_of(row), row["passed"] - 0.5, row["standard"]["gamma"]
    found, curve = asdict(metrics_from_compact(arrays, at)), curve_from_compact(arrays)
    wrong = [key for key in METRICS if not abs(row["standard"][key] - found[key]) < 1e-9]
    yield from (f"{key} is {row['standard'][key]}, its images give {found[key]}" for key in wrong)
    said = [accuracy for side in ("seen", "unseen") for _, accuracy in row["classes"][side].values()]
    accuracy = per_class_accuracy(predictions(arrays, at), arrays["labels"], np.arange(len(said)))
    if not np.allclose(said, accuracy, rtol=0, atol=1e-9):
        yield "accuracies of classes are not those of its images"
    low, high = row["between"]
    if not ((low is None or low <= gamma) and (high is None or gamma < high)):
        yield "γ does not lie between its margins"
    middle = low + 1 if high is None else high - 1 if low is None else (low + high) / 2
    if row["passed"] == np.searchsorted(curve.thresholds, curve.best(), side="right") and abs(gamma - middle) < 1e-12:
        yield "γ is the very middle of the highest H on the test images: it was chosen on test"
