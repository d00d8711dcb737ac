"""Rows of summary.csv with made-up numbers."""

METRICS = {"T1": 0.7, "U": 0.5, "S": 0.6, "H": 0.55, "AUSUC": 0.4}


def row(method="vsmr", seed=0, up=0.0, **changes):
    """One run as summary.csv holds it."""
    made = {
        "dataset": "CUB",
        "method": method,
        "ablation": "",
        "seed": seed,
        "backbone": "ResNet_101",
        "regions": "49 regions",
        "input_size": 224,
        "features": "",
        "features_sha256": "f1",
        "vectors_sha256": "v1",
        "split_sha256": "s1",
        "precision": "float32",
        "recipe": "{}",
        "code": "c1",
        "method_code": f"m-{method}",
        "pretraining_saw_unseen": "no",
        "finetuned": False,
        "most_epochs": 20,
        "epochs": 5 + seed,
        "cut_off": "",
        "gamma": 0.5,
        "H_gamma0": 0.31,
        "H_best": 0.58,
        "configurations": 3,
        "seconds": 10.0,
        "device": "cpu",
        "torch": "2",
        "notes": "",
    }
    shift = up + 0.01 * seed
    made |= {k: v + shift for k, v in METRICS.items()} | {f"val_{k}": v + shift for k, v in METRICS.items()}
    return made | changes
