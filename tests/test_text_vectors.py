"""Attribute vectors from text encoders: whole names, any dimension, and a sentence where something is missing."""

from __future__ import annotations

import importlib
import json
import sys
import types

import numpy as np
import pytest
import torch

from core.commands import vectors as command
from core.datasets import text_vectors
from core.datasets.text_vectors import attribute_text
from core.datasets.vectors import attribute_vectors, load_attribute_vectors
from core.files.errors import UserError

NAMES = ["has_bill_shape::curved_(up_or_down)", "has_wing_color::red", "swims"]


class Encoder:
    """What sentence_transformers.SentenceTransformer does, with numbers of the texts' letters."""

    made: tuple = ()

    def __init__(self, name, **how):
        type(self).made = (name, how)
        if name == "nowhere":
            raise OSError("We couldn't connect to the hub\nsecond line")

    def encode(self, texts, convert_to_numpy, show_progress_bar):
        assert convert_to_numpy and not show_progress_bar
        return np.array([[text.count(letter) for letter in "abcdeghilmoprsuw"] for text in texts], np.float64)


@pytest.fixture
def fake(monkeypatch):
    module = types.ModuleType("sentence_transformers")
    module.SentenceTransformer = Encoder
    monkeypatch.setitem(sys.modules, "sentence_transformers", module)


def test_an_encoder_reads_the_whole_name():
    assert [attribute_text(n) for n in NAMES] == ["curved bill shape", "red wing color", "swims"]


def test_sentence_transformers_give_unit_vectors_of_their_own_size(fake):
    made = attribute_vectors("sentence-transformers:all-MiniLM-L6-v2", NAMES)
    assert made.vectors.shape == (3, 16) and made.vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(made.vectors, axis=1), 1, rtol=1e-6)
    assert Encoder.made == ("all-MiniLM-L6-v2", {"device": "cpu", "trust_remote_code": False})  # its code is not run
    plain = Encoder("x").encode(["curved bill shape"], convert_to_numpy=True, show_progress_bar=False)[0]
    np.testing.assert_allclose(made.vectors[0], plain / np.linalg.norm(plain), rtol=1e-6)
    assert made.words == [["curved bill shape"], ["red wing color"], ["swims"]]


def test_the_command_writes_them_with_what_was_read(fake, tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("".join(f"{k} {n}\n" for k, n in enumerate(NAMES, 1)))
    monkeypatch.setattr("core.datasets.names.attribute_count", lambda *a: None)
    out = tmp_path / "v.pkl"
    flags = ["--source", "sentence-transformers:m", "--attributes", str(tmp_path / "a.txt"), "--out", str(out)]
    assert command.main("CUB", None, flags) == 0
    assert load_attribute_vectors(out, 3).shape == (3, 16)
    record = json.loads(out.with_suffix(".json").read_text())
    assert record["source"] == "sentence-transformers:m" and record["words"][0] == ["curved bill shape"]


@pytest.mark.parametrize(
    ("source", "module", "said"),
    [
        ("sentence-transformers:m", "sentence_transformers", "pip install sentence-transformers"),
        ("open_clip:ViT-B-16/openai", "open_clip", "pip install open_clip_torch"),
    ],
)
def test_a_missing_library_is_one_sentence_with_the_command(monkeypatch, source, module, said):
    real = importlib.import_module

    def missing(name, *a):
        if name == module:
            raise ImportError(f"No module named {name!r}")
        return real(name, *a)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(UserError, match=f"not installed .*{said}"):
        attribute_vectors(source, NAMES)


def test_a_failed_download_is_one_sentence(fake):
    with pytest.raises(UserError, match=r"could not be loaded \(We couldn't connect to the hub\)\. Offline\?") as error:
        attribute_vectors("sentence-transformers:nowhere", NAMES)
    assert "second line" not in str(error.value)


@pytest.mark.parametrize("rows", [np.ones((2, 4)), np.ones(3), np.full((3, 4), np.nan), np.zeros((3, 4))])
def test_vectors_that_are_no_use_are_refused(fake, monkeypatch, rows):
    monkeypatch.setattr(text_vectors, "_sentences", lambda *a: rows)
    with pytest.raises(UserError, match="not one a text, not finite, or zero"):
        attribute_vectors("sentence-transformers:m", NAMES)


def test_open_clip_encodes_the_names(monkeypatch):
    open_clip = pytest.importorskip("open_clip", reason="open_clip is not installed")
    small = {
        "embed_dim": 12,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "patch_size": 16, "head_width": 16},
    }
    small["text_cfg"] = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    from open_clip import factory

    monkeypatch.setitem(factory._MODEL_CONFIGS, "small-test", small)
    torch.manual_seed(0)
    model = open_clip.create_model("small-test").eval()
    monkeypatch.setattr(open_clip, "create_model", lambda *a, **k: model)  # as of pretrained weights
    made = attribute_vectors("open_clip:small-test/laion", NAMES)
    assert made.vectors.shape == (3, 12)
    text = open_clip.get_tokenizer("small-test")(["red wing color"])
    with torch.inference_mode():
        np.testing.assert_allclose(made.vectors[1], model.encode_text(text, normalize=True)[0], atol=1e-6)


def test_an_unknown_source_names_the_encoders():
    with pytest.raises(UserError, match=r"open_clip:MODEL/PRETRAINED, sentence-transformers:NAME"):
        attribute_vectors("bert", NAMES)
