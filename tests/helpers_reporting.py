"""Rows of summary.csv with made-up numbers, and folders of runs with made-up scores."""

import numpy as np

from core.experiments.results import write_json
from core.files.atomic import sha256_file

METRICS = {"T1": 0.7, "U": 0.5, "S": 0.6, "H": 0.55, "AUSUC": 0.4}


def row(method="vsmr", seed=0, up=0.0, **changes):
    """One run as summary.csv holds it."""
    made = {"dataset": "CUB", "method": method, "ablation": "", "seed": seed, "backbone": "ResNet_101", "notes": ""}
    made |= {"regions": "49 regions", "input_size": 224, "features": "", "precision": "float32", "recipe": "{}"}
    made |= {"features_sha256": "f1", "vectors_sha256": "v1", "split_sha256": "s1", "code": "c1"}
    made |= {"method_code": f"m-{method}", "pretraining_saw_unseen": "no", "finetuned": False, "cut_off": ""}
    made |= {"most_epochs": 20, "recipe_epochs": 20, "epochs": 5 + seed, "configurations": 3, "seconds": 10.0}
    made |= {"gamma": 0.5, "gamma_splits": 1, "H_gamma0": 0.31, "H_best": 0.58, "device": "cpu", "torch": "2"}
    shift = up + 0.01 * seed
    made |= {k: v + shift for k, v in METRICS.items()} | {f"val_{k}": v + shift for k, v in METRICS.items()}
    return made | changes


def run_left(folder, one, labels=(0, 0, 3, 3, 1, 1, 2, 2), best=None, right=True):
    """A folder as a run of the row ``one`` leaves it: classes 0 and 3 are seen, 1 and 2 unseen.

    Args: best: of each image the class predicted; None: its own, or that of none where it is not ``right``.
    """
    labels, unseen = np.array(labels), np.isin(labels, (1, 2))
    best = (labels if right else 3 - labels) if best is None else np.array(best)
    taken = np.isin(best, (1, 2))  # for an unseen class
    arrays = {"labels": labels, "side": unseen.astype(np.uint8), "margin": np.where(taken, -1.0, 1.0)}
    arrays |= {"best_seen": np.where(taken, 0, best), "best_unseen": np.where(taken, best, 1)}
    folder.mkdir(parents=True)
    np.savez(folder / "scores.npz", **arrays)
    standard = {key: one[key] for key in METRICS} | {"gamma": 0.0}
    files = {"scores.npz": sha256_file(folder / "scores.npz")}
    write_json(folder / "metrics.json", {"config": {}, "standard": standard, "files": files})
    return folder
