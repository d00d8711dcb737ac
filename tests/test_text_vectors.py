"""Attribute vectors from a text encoder: whole names, any dimension, and a sentence where something is missing."""

import json
import sys
import types

import numpy as np
import pytest

from core.commands import vectors as command
from core.datasets.vectors import attribute_vectors, load_attribute_vectors
from core.files.errors import UserError

NAMES = ["has_bill_shape::curved_(up_or_down)", "has_wing_color::red", "swims"]


class Encoder:
    """What sentence_transformers.SentenceTransformer does, with numbers of the texts' letters."""

    def __init__(self, name, **how):
        assert how == {"device": "cpu", "trust_remote_code": False}  # its code is not run
        if name == "nowhere":
            raise OSError("We couldn't connect to the hub\nsecond line")
        self.factor = 0 if name == "zero" else 1

    def encode(self, texts, convert_to_numpy=True, show_progress_bar=False):
        return self.factor * np.array([[t.count(letter) for letter in "abcdeghilmoprsuw"] for t in texts], np.float64)


@pytest.fixture(autouse=True)
def fake(monkeypatch):
    module = types.ModuleType("sentence_transformers")
    module.SentenceTransformer = Encoder
    monkeypatch.setitem(sys.modules, "sentence_transformers", module)


def test_the_command_writes_unit_vectors_of_whole_names_with_what_was_read(tmp_path):
    (tmp_path / "a.txt").write_text("".join(f"{k} {n}\n" for k, n in enumerate(NAMES, 1)))
    out = tmp_path / "v.pkl"
    flags = ["--source", "sentence-transformers:m", "--attributes", str(tmp_path / "a.txt"), "--out", str(out)]
    assert command.main("DEMO", None, flags) == 0
    texts = ["curved bill shape", "red wing color", "swims"]
    plain = Encoder("m", device="cpu", trust_remote_code=False).encode(texts)
    expected = plain / np.linalg.norm(plain, axis=1, keepdims=True)
    np.testing.assert_allclose(load_attribute_vectors(out, 3), expected, rtol=1e-6)
    record = json.loads(out.with_suffix(".json").read_text())
    assert record["source"] == "sentence-transformers:m" and record["words"] == [[text] for text in texts]


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("sentence-transformers:nowhere", r"could not be loaded \(We couldn't connect to the hub\)\. Offline\?"),
        ("sentence-transformers:zero", "attribute 1 is not finite"),
        ("bert", "nor is it one of .*sentence-transformers:NAME"),
    ],
)
def test_what_cannot_be_had_is_one_sentence(source, said):
    with pytest.raises(UserError, match=said):
        attribute_vectors(source, NAMES)
