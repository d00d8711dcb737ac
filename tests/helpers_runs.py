"""Small runs of every method on the toy data set."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import core.experiments.run as experiment
import core.training.loop as loop
from core.experiments.identity import run_config
from core.experiments.inputs import Inputs, split_digest
from core.experiments.run import run
from core.features.regions import RegionFeatures
from core.methods import find_method, methods
from core.training.checkpoint import load_checkpoint
from tests.helpers import ToyFeatures

SMALL = {  # settings with which a method takes less than a second here; another is run as it is
    "dazle": {"lr": 1e-3, "batch_size": 16},
    "vsmr-staged": {
        **{"predictor_lr": 1e-2, "predictor_epochs": 2, "threshold": None, "hidden": 16, "semantic_lr": 1e-2},
        **{"semantic_epochs": 20, "neighbours": 5, "classes_per_batch": 4, "images_per_class": 3},
    },
    "vsmr": {"width": 8},
    "eszsl": {},
    "msdn": {"lr": 1e-3, "batch_size": 16},
    "cada-vae": {
        **{"vae_epochs": 1, "latent": 4, "image_encoder": 8, "image_decoder": 8, "attribute_encoder": 8},
        **{"attribute_decoder": 8, "batch_size": 500},
    },
    "tf-vaegan": {"gan_epochs": 2, "hidden": 8, "per_class": 40},
    "cnzsl": {"hidden": 16},
    "bias-aware": {"hidden": 16},
    "transzero": {"lr": 1e-3, "batch_size": 16, "width": 12, "feed_forward": 16},
}
METHODS = [name for name, m in methods().items() if not name.endswith("-prepared") and not m.needs_text]
W2V = np.random.default_rng(3).normal(size=(8, 6)).astype(np.float32)


def recipe_of(method):
    return replace(find_method(method).recipe("*"), **SMALL.get(method, {}))


def inputs_of(metadata, features=None, source=None, w2v=W2V):
    source = source or ToyFeatures(metadata)
    return Inputs(
        dataset="TOY",
        metadata=metadata,
        w2v=w2v,
        features=features or RegionFeatures(source, np.arange(len(metadata.labels)), source.shape),
        provenance={"backbone": "toy", "regions": "3x3", "name": "toy"},
        features_sha256="ab",
        vectors_sha256="cd",
        split_sha256=split_digest(metadata),
        attribute_names=[f"attribute {k}" for k in range(len(w2v))],
    )


def config_of(method, inputs, seed=0, epochs=2):
    return run_config(inputs, method, recipe_of(method), seed=seed, epochs=epochs)


def go(method, toy, out, epochs=2, seed=0, **kw):
    inputs = inputs_of(toy)
    return run(config_of(method, inputs, seed, epochs), inputs, out, **kw)


def go_to_the_end(method, toy, out, epochs=2):
    """A run whose refit trains for all epochs: validation of a toy may prefer the untrained model."""
    with pytest.MonkeyPatch.context() as patch:
        real = experiment.choose

        def all_epochs(config, *a):
            chosen, history = real(config, *a)
            return chosen | {"epochs": config.epochs}, history

        patch.setattr(experiment, "choose", all_epochs)
        result = go(method, toy, out, epochs)
    assert result["chosen"]["epochs"] == epochs
    return result


def interrupted(monkeypatch, stop, act):
    """Do what ends with an interruption right after the ``stop``-th state is written; the names of those written."""
    real, written = loop._store, []

    def stopping(path, *a):
        real(path, *a)
        written.append(path.name)
        if len(written) == stop:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_store", stopping)
        with pytest.raises(KeyboardInterrupt):
            act()
    return written


def same(a, b):
    """Two folders hold the same run, but for the times it took."""
    assert (a / "per_class.csv").read_bytes() == (b / "per_class.csv").read_bytes()
    x, _ = load_checkpoint(a / "checkpoint.safetensors")
    y, _ = load_checkpoint(b / "checkpoint.safetensors")
    assert x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x)
    m, n = (json.loads((p / "metrics.json").read_text()) for p in (a, b))
    for result in (m, n):
        for key in ("seconds", "processor_seconds", "sha256"):  # the last is of all else, the seconds too
            result.pop(key)
    assert m == n
