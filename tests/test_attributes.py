"""Attribute names, word vectors, which words are in the published sums, and vectors of a text encoder."""

import gzip
import json
import logging
import pickle
import sys
import types
from pathlib import Path

import gensim.downloader
import numpy as np
import pytest
from gensim.models import KeyedVectors

from core.commands.vectors import main
from core.datasets import names as N
from core.datasets import vectors as A
from core.datasets.registry import AWA2, CUB, SUN
from core.files.errors import UserError
from core.files.pickles import load_array_pickle


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("has_bill_shape::curved_(up_or_down)", "bill shape curved"),
        ("has_shape::upright-perching_water-like", "shape upright perching water like"),
        ("has_wing_color::grey", "wing color gray"),
        ("newworld", "new world"),
        ("wood (not part of a tree)", "wood"),
    ],
)
def test_clean_name(name, words):
    assert N.clean_name(name) == words.split()


@pytest.fixture
def words():
    names = ["new", "world", "red", "flies"]
    return dict(zip(names, np.random.default_rng(0).standard_normal((4, 300)).astype(np.float32), strict=True))


def summed(names, path):
    return A.sum_vectors(names, A.load_words(str(path), N.words_of(names)))


@pytest.mark.parametrize(("file", "binary"), [("glove.txt", 0), ("a.vec", 0), ("a.bin", 1), ("b.gz", 0), ("c.gz", 1)])
def test_every_source_gives_the_same_sums(tmp_path, words, binary, file, caplog):
    if binary:
        words["world"] = np.frombuffer(b"\n7 5\n8 9" * 150, "<f4")  # bytes that end a line like a number
    kv, plain = KeyedVectors(300), tmp_path / "plain"
    kv.add_vectors(list(words), list(words.values()))
    kv.save_word2vec_format(str(plain), binary=binary, write_header=binary or file != "glove.txt")
    (tmp_path / file).write_bytes((gzip.compress if file.endswith(".gz") else bytes)(plain.read_bytes()))
    with caplog.at_level(logging.WARNING):
        made = summed(["newworld", "flys", "red-zzz"], tmp_path / file)
    expected = np.stack([words["new"] + words["world"], words["flies"], words["red"]])
    np.testing.assert_allclose(made.vectors, expected, rtol=1e-5, atol=1e-6)
    assert made.unknown == {"red-zzz": ["zzz"]}
    assert "zzz" in caplog.text


@pytest.mark.parametrize(
    "content",
    [
        b"4\t3\nnew\t1\t2\t3\nred\t4\t5\t6\nx\t1\t1\t1\ny\t1\t1\t1\n",
        b"new 1 2 3\r\nred 4 5 6\r\nred 9 9 9\r\n",  # gensim takes the first
        b"2.5 9 9 9\n. . . 9 9 9\nred at name@domain.com 9 9 9\nred 4 5 6\n\nnew 1 2 3\nred 0 9 9 9\n",  # glove.840B
    ],
)
def test_text_as_other_programs_write_it(tmp_path, content):
    (tmp_path / "v.txt").write_bytes(content)
    assert summed(["new", "red"], tmp_path / "v.txt").vectors.tolist() == [[1, 2, 3], [4, 5, 6]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xba\x16\x4f\x2f" + bytes(99), r"no word vectors can be read .*\.vec"),  # fastText's .bin
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (b"red apples are sweet\n", "could not convert"),
        (b"red\n", "ends after 1 vectors of 0 numbers"),
        (b"9 3\nred " + bytes(12), "unexpected end"),
        (b"2 3\nred 1 2 3\n", "ends after 1 vectors.*names 2"),
        (b"red 1 2 3\nblue 1 2 3 4\n", "no word of the attribute 'blue_new'"),
        *((f"new {bad} 1\nblue {bad} 1\n".encode(), "attribute 1 is not finite") for bad in ("nan", "3e38")),
    ],
)
def test_what_is_no_file_of_word_vectors_is_named(tmp_path, content, message):
    (tmp_path / "v").write_bytes(content)
    with pytest.raises(UserError, match=message):
        summed(["blue_new"], tmp_path / "v")  # twice 3e38 is no float32


def test_without_network_there_is_one_message(monkeypatch, capsys, caplog):
    def fails(*_, **__):
        logging.getLogger("gensim.downloader").error("a traceback")
        raise OSError("no network")

    monkeypatch.setattr(gensim.downloader, "load", fails)
    with pytest.raises(UserError, match=r"no network.*--source PATH"):
        A.load_words(A.MODELS[0], ["red"])
    assert not caplog.text and not capsys.readouterr().err


def test_the_root_decides_where_vectors_go(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for root in (tmp_path / "data", tmp_path / "own"):
        (root / "CUB" / "CUB_200_2011").mkdir(parents=True)
        (root / "CUB" / "attributes.txt").write_text("".join(f"{k + 1} red\n" for k in range(312)))
    np.save("v.npy", np.ones((312, 7)))
    main("CUB", None, ["--source", "v.npy", "--data-root", str(tmp_path / "data")])
    assert A.load_attribute_vectors("w2v/CUB_attribute.pkl", 312).shape == (312, 7)
    main("CUB", None, ["--source", "v.npy", "--data-root", "own"])
    assert (tmp_path / "own/w2v/CUB_attribute.pkl").is_file()
    np.save("v.npy", np.ones((311, 7)))
    with pytest.raises(UserError, match=r"v\.npy holds .*\(311, 7\).*\(312, V\)"):
        main("CUB", None, ["--source", "v.npy"])


def test_demo_round_trip_and_damage(tmp_path):
    (tmp_path / "attributes.txt").write_text("1 has_wing_color::red\n2 has_tail_color::red\n")
    out = tmp_path / "DEMO_attribute.pkl"
    A.write_demo_vectors(tmp_path / "attributes.txt", out)
    first = out.read_bytes()
    vectors = A.load_attribute_vectors(out, 2)
    assert vectors.dtype == np.float32
    difference = A.hashed_word_vector("wing") - A.hashed_word_vector("tail")
    np.testing.assert_allclose(vectors[0] - vectors[1], difference, atol=1e-6)
    assert pickle.loads(first).shape == (2, 300)  # as DAZLE's scripts read it
    A.write_demo_vectors(tmp_path / "attributes.txt", out)
    assert out.read_bytes() == first
    for values, said in (
        (np.ones((3, 300)), r"\(3, 300\).*\(2, V\)"),
        (np.full((2, 3), 1e300), "not finite"),
        (vectors * [[0], [1]], "describes"),
    ):
        out.write_bytes(pickle.dumps(values, protocol=2))
        with pytest.raises(UserError, match=said):
            A.load_attribute_vectors(out, 2)
    out.with_suffix(".json").unlink()
    with pytest.raises(UserError, match=r"attributes \[1\] have a vector of zeros"):
        A.load_attribute_vectors(out, 2)


def row_residual(words, rows):
    """Largest error of the best word vectors for ``rows`` (K,V) as sums over ``words`` (K,).

    Near 0 is necessary, not sufficient: words that always occur together cannot be told apart.
    """
    vocabulary = sorted({w for row in words for w in row})
    counts = np.array([[row.count(w) for w in vocabulary] for row in words], dtype=np.float64)
    return np.abs(counts @ np.linalg.lstsq(counts, rows, rcond=None)[0] - rows).max()


def single(vector):
    """Share of values with 8 significant bits: 1.0 for one word2vec-google-news vector, about 0.5 or less for a sum."""
    mantissa = np.frexp(np.asarray(vector, np.float64))[0] * 256
    return float(np.mean(np.abs(mantissa - np.round(mantissa)) < 256 * 1e-6))


def published(shared, dataset):
    names = N.read_names_file(shared / "attributes" / dataset.source / Path(dataset.attribute_file).name)
    return names, load_array_pickle(shared / "w2v" / f"{dataset.source}_attribute.pkl").astype(np.float64)


@pytest.mark.parametrize("dataset", [AWA2, CUB, SUN], ids=lambda d: d.name)
def test_published_rows_are_sums_of_our_words(shared, dataset):
    names, rows = published(shared, dataset)
    assert row_residual([N.clean_name(n) for n in names], rows) < 1e-12


def test_which_words_the_published_sums_hold(shared):
    """A google-news vector has 8 significant bits per value, a sum has not: differences of rows name their words."""
    names, rows = published(shared, CUB)
    cub = dict(zip(names, rows, strict=True))
    awa_names, awa_rows = published(shared, AWA2)
    awa = dict(zip(awa_names, awa_rows, strict=True))
    # one word beside "small": neither "has", nor "in", nor what is in parentheses
    size = cub["has_size::small_(5_-_9_in)"] - awa["small"]
    assert single(size) == 1
    assert single(cub["has_size::very_large_(32_-_72_in)"] - cub["has_size::large_(16_-_32_in)"]) == 1
    # grey is spelled gray
    color = "has_primary_color::"
    np.testing.assert_allclose(cub[color + "grey"] - cub[color + "black"], awa["gray"] - awa["black"], atol=1e-12)
    # the words teeth, chew and strain; and words left whole
    teeth = awa["meatteeth"] - awa["meat"]
    assert single(teeth) == single(awa["chewteeth"] - teeth) == single(awa["strainteeth"] - teeth) == 1
    assert all(single(awa[n]) == 1 for n in ("longneck", "buckteeth", "flys", "quadrapedal"))
    assert all(single(awa[n]) < 0.6 for n in ("newworld", "longleg", "toughskin", "nestspot"))
    # the part words stand alone, so "color" and "pattern" are all that is beside them
    pattern = cub["has_tail_pattern::solid"] - awa["tail"]
    belly = cub["has_belly_pattern::solid"] - pattern
    red_color = cub["has_belly_color::red"] - belly
    bill = cub["has_bill_color::red"] - red_color
    assert single(belly) == single(bill) == 1
    pointed = cub["has_tail_shape::pointed_tail"] - 2 * awa["tail"]
    wing = cub["has_wing_color::red"] - red_color
    wings = cub["has_wing_shape::pointed-wings"] - pointed - wing
    assert single(wings) == 1  # hyphens are split
    # upperparts was split into upper parts, underparts was not, spatulate was replaced by broad
    upper = cub["has_upper_tail_color::red"] - red_color - awa["tail"]
    assert single(upper) == single(cub["has_upperparts_color::red"] - red_color - upper) == 1
    assert single(cub["has_underparts_color::red"] - red_color) == 1
    broad = cub["has_wing_shape::broad-wings"] - wing - wings
    np.testing.assert_allclose(cub["has_bill_shape::spatulate"] - bill, broad, atol=1e-12)


def test_published_sun_has_one_row_of_zeros(shared, tmp_path):
    out = tmp_path / "SUN_attribute.pkl"
    source = shared / "w2v" / "SUN_attribute.pkl"
    main(
        "SUN",
        None,
        ["--source", str(source), "--attributes", str(shared / "attributes/SUN/attributes.mat"), "--out", str(out)],
    )
    assert not A.load_attribute_vectors(out, 102)[88].any()
    record = json.loads(out.with_suffix(".json").read_text())
    assert record["zero_rows"] == [88] and record["names"][88] == "man-made"
    with pytest.raises(UserError, match="zeros"):
        A.load_attribute_vectors(source, 102)


TEXTS = ["has_bill_shape::curved_(up_or_down)", "has_wing_color::red", "swims"]


class Encoder:
    """What sentence_transformers.SentenceTransformer does, with numbers of the texts' letters."""

    def __init__(self, name, **how):
        assert how == {"device": "cpu", "trust_remote_code": False}  # its code is not run
        if name == "nowhere":
            raise OSError("We couldn't connect to the hub\nsecond line")
        self.factor = 0 if name == "zero" else 1

    def encode(self, texts, convert_to_numpy=True, show_progress_bar=False):
        return self.factor * np.array([[t.count(letter) for letter in "abcdeghilmoprsuw"] for t in texts], np.float64)


@pytest.fixture
def encoders(monkeypatch):
    module = types.ModuleType("sentence_transformers")
    module.SentenceTransformer = Encoder
    monkeypatch.setitem(sys.modules, "sentence_transformers", module)


def test_the_command_writes_unit_vectors_of_whole_names_with_what_was_read(encoders, tmp_path):
    (tmp_path / "a.txt").write_text("".join(f"{k} {n}\n" for k, n in enumerate(TEXTS, 1)))
    out = tmp_path / "v.pkl"
    flags = ["--source", "sentence-transformers:m", "--attributes", str(tmp_path / "a.txt"), "--out", str(out)]
    assert main("DEMO", None, flags) == 0
    texts = ["curved bill shape", "red wing color", "swims"]
    plain = Encoder("m", device="cpu", trust_remote_code=False).encode(texts)
    expected = plain / np.linalg.norm(plain, axis=1, keepdims=True)
    np.testing.assert_allclose(A.load_attribute_vectors(out, 3), expected, rtol=1e-6)
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
def test_what_cannot_be_had_is_one_sentence(encoders, source, said):
    with pytest.raises(UserError, match=said):
        A.attribute_vectors(source, TEXTS)
