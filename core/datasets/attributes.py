"""Attribute names -> words -> word vectors: one (K,300) array per data set, in w2v/<DS>_attribute.pkl.

The published files (DAZLE's) are sums of word2vec-google-news-300 vectors. tests/test_attributes.py proves from their
numbers which words are in the sums: no "has", no sizes in parentheses, hyphens split, "grey" spelled "gray".
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import logging
import pickle
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from core.datasets.registry import DATASETS, DataSet, image_folder
from core.files.atomic import (
    ArrayUnpickler,
    PickledArray,
    load_array_pickle,
    read_json,
    sha256_file,
    write_bytes,
)
from core.files.errors import UserError
from core.files.matfile import read_mat

log = logging.getLogger(__name__)

V = 300
_FIRST_LINE = 1 << 16  # bytes; 300 numbers take 4 kB
_GZIP_RATIO = 1032  # no gzip file expands more
NAMES_LIMIT = 1 << 20  # bytes of a list of attribute names; CUB's has 10 kB
MODELS = ("glove-wiki-gigaword-300", "word2vec-google-news-300")

# Always rewritten; the left forms are not English words, or the other data sets spell them as on the right.
_RESPELLED = {
    "grey": "gray",
    "quadrapedal": "quadrupedal",
    "newworld": "new world",
    "oldworld": "old world",
    "nestspot": "nest spot",
    "toughskin": "tough skin",
    "longleg": "long leg",
    "chewteeth": "chew teeth",
    "meatteeth": "meat teeth",
    "strainteeth": "strain teeth",
}
# Rewritten only where the vocabulary lacks the word; among the published vectors upperparts and
# spatulate were rewritten, longneck, buckteeth, flys and underparts were not.
_FALLBACK = {
    "longneck": "long neck",
    "buckteeth": "buck teeth",
    "flys": "flies",
    "upperparts": "upper parts",
    "underparts": "under parts",
    "eyering": "eye ring",
    "eyeline": "eye line",
    "spatulate": "broad",
    "multicolored": "multi colored",
}


class Vocabulary(Protocol):
    """What we need of word vectors: gensim's KeyedVectors, or a dict."""

    def __contains__(self, word: Any, /) -> bool: ...

    def __getitem__(self, word: Any, /) -> Any: ...


@dataclass
class AttributeVectors:
    """Vectors of a data set's attributes and how they were made."""

    vectors: np.ndarray  # (K,V) float32
    names: list[str]  # (K,)
    words: list[list[str]]  # (K,) the words summed; empty for ready-made vectors
    unknown: dict[str, list[str]]  # attribute -> its words outside the vocabulary


def clean_name(name: str) -> list[str]:
    """Words of an attribute name: ``has_bill_shape::curved_(up_or_down)`` -> bill, shape, curved."""
    text = re.sub(r"\([^)]*\)", " ", name.lower())
    words = [w for w in re.split(r"[^a-z0-9]+", text) if w]
    if "::" in name and words[:1] == ["has"]:
        words = words[1:]
    return [w for word in words for w in _RESPELLED.get(word, word).split()]


def read_names_file(path: Path | str) -> list[str]:
    """Attribute names in file order from ``1 name`` lines (AWA2, CUB, DEMO) or SUN's attributes.mat.

    Raises:
        UserError: missing, unreadable, or not numbered 1..K.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no attribute names at {path}")
    try:
        if path.suffix == ".mat":
            names = [str(cell).strip() for cell in np.ravel(read_mat(path, ["attributes"])["attributes"])]
        else:
            if path.stat().st_size > NAMES_LIMIT:
                raise ValueError(f"more than {NAMES_LIMIT} bytes")
            rows = [line.split(maxsplit=1) for line in path.read_text("utf-8").splitlines() if line.strip()]
            if [int(row[0]) for row in rows] != list(range(1, len(rows) + 1)):
                raise ValueError("lines are not numbered 1, 2, 3, ...")
            names = [row[1].strip() for row in rows]
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise UserError(f"{path} is not a list of attribute names ({type(error).__name__}: {error})") from error
    if not names:
        raise UserError(f"{path} lists no attributes")
    return names


def find_names_file(dataset: DataSet, data_root: Path, given: Path | None = None) -> Path:
    """The data set's attribute file: ``given`` (a file or a folder), else below the images or beside their folder.

    Raises:
        UserError: not found; names every place looked at.
    """
    relative = Path(dataset.attribute_file)
    if given is not None:
        tried = [given / relative.name, given / relative] if given.is_dir() else [given]
    else:
        folder = image_folder(data_root, dataset)
        # CUB's archive has attributes.txt at its top level, beside CUB_200_2011/
        tried = [folder / relative, folder / relative.name, folder.parent / relative.name, folder.parent / relative]
    for path in tried:
        if path.is_file():
            return path
    looked = ", ".join(map(str, tried))
    raise UserError(
        f"no attribute names of {dataset.source}. Looked for: {looked}. Name the file with --attributes PATH, "
        f"or see data/{dataset.source}.md for where to get it."
    )


def read_attribute_names(dataset: DataSet, data_root: Path, given: Path | None = None) -> list[str]:
    """Attribute names (K,) of a data set, in the order of the columns of xlsa17's ``att``."""
    names = read_names_file(find_names_file(dataset, Path(data_root), given))
    if dataset.counts is not None and len(names) != dataset.counts.attributes:
        raise UserError(f"{dataset.source} has {dataset.counts.attributes} attributes, its file lists {len(names)}")
    return names


class _VectorsUnpickler(ArrayUnpickler):
    """Plain arrays plus gensim's vector classes, which become records: attributes only, no code."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self.record = type("Record", (), {})  # a class of its own for each file, which may then spoil it

    def find_class(self, module: str, name: str) -> Any:
        if module == "gensim.models.keyedvectors":
            return self.record
        return super().find_class(module, name)


def _load_kv(path: Path) -> dict[str, np.ndarray]:
    """Word vectors of a gensim .kv file, read without running anything in it (KeyedVectors.load would)."""
    unpickler = _VectorsUnpickler(path.read_bytes())
    record = unpickler.load()
    fields = vars(record) if isinstance(record, unpickler.record) else {}
    words = fields.get("index_to_key")
    beside = path.with_name(path.name + ".vectors.npy")  # gensim stores large arrays beside the pickle
    vectors = fields.get("vectors")
    if isinstance(vectors, PickledArray):
        vectors = vectors.array()
    elif vectors is None and beside.is_file():
        vectors = np.load(beside, mmap_mode="r", allow_pickle=False)
    if not isinstance(words, list) or not isinstance(vectors, np.ndarray) or len(words) != len(vectors):
        raise ValueError(f"no gensim 4 index_to_key and vectors of equal length (is {beside.name} there?)")
    if vectors.ndim != 2 or vectors.dtype.kind != "f":
        raise ValueError(f"an array of {vectors.dtype} of shape {vectors.shape}, not one vector a word")
    return dict(zip(words, vectors, strict=True))


def load_vocabulary(source: str) -> Vocabulary:
    """Word vectors from a gensim-data name or a local GloVe .txt, word2vec .txt/.bin[.gz] or gensim .kv file.

    Raises:
        UserError: unknown name, failed download, missing or damaged file, or a size other than 300.
    """
    path = Path(source)
    try:
        if path.is_file() and path.suffix == ".kv":
            words: Any = _load_kv(path)
        elif path.is_file():
            binary, packed = source.endswith((".bin", ".bin.gz")), source.endswith(".gz")
            with gzip.open(path) if packed else open(path, "rb") as handle:
                first = handle.readline(_FIRST_LINE).split()
            header = binary or len(first) == 2
            if header:
                count, size = int(first[0]), int(first[1])
                if size != V:
                    raise UserError(f"{source} has vectors of size {size}; {V} are needed")
                # gensim sets aside what the header names, also of a file that holds less
                if not 0 < 2 * count * size <= path.stat().st_size * (_GZIP_RATIO if packed else 1):
                    raise ValueError(f"its header names {count} vectors, none or more than the file can hold")
            from gensim.models import KeyedVectors

            words = KeyedVectors.load_word2vec_format(
                source, binary=binary, no_header=not header, unicode_errors="replace"
            )
        elif source in MODELS:
            import gensim.downloader

            log.info("loading %s through gensim (downloaded once, some GB)", source)
            words = gensim.downloader.load(source)
        else:
            raise UserError(f"no word vectors {source}: neither a file nor one of {', '.join(MODELS)}")
        size = len(words[next(iter(words))]) if isinstance(words, dict) else words.vector_size
    except UserError as error:
        raise error if source in str(error) else UserError(f"{source}: {error}") from None
    except Exception as error:  # network, damaged text, damaged pickle
        raise UserError(
            f"cannot load the word vectors {source} ({type(error).__name__}: {error}). "
            "Give a local GloVe .txt, word2vec .bin, gensim .kv or a ready (K,300) .pkl with --source PATH."
        ) from error
    if size != V:
        raise UserError(f"{source} has vectors of size {size}; {V} are needed")
    return words


def sum_vectors(names: Sequence[str], vocabulary: Vocabulary) -> AttributeVectors:
    """Sum the vectors of each name's words -> (K,V) float32; words outside the vocabulary are logged and listed.

    Raises:
        UserError: an attribute none of whose words is known, or whose words' vectors are damaged.
    """
    vectors = np.zeros((len(names), V))
    words: list[list[str]] = []
    unknown: dict[str, list[str]] = {}
    for k, name in enumerate(names):
        used = []
        for word in clean_name(name):
            parts = [word] if word in vocabulary else _FALLBACK.get(word, word).split()
            used += [w for w in parts if w in vocabulary]
            if missing := [w for w in parts if w not in vocabulary]:
                unknown.setdefault(name, []).extend(missing)
        if not used:
            raise UserError(f"no word of attribute {k + 1} ({name!r}) is among the word vectors; use another --source")
        vectors[k] = np.sum([np.asarray(vocabulary[w], dtype=np.float64) for w in used], axis=0)
        if not (np.abs(vectors[k]) <= np.finfo(np.float32).max).all():  # NaN is not either
            raise UserError(f"the word vectors of attribute {k + 1} ({name!r}) are not finite; use another --source")
        words.append(used)
    for name, missing in unknown.items():
        log.warning("%s: outside the vocabulary, left out: %s", name, ", ".join(missing))
    return AttributeVectors(vectors.astype(np.float32), list(names), words, unknown)


def write_attribute_vectors(out: Path | str, made: AttributeVectors, source: str, source_sha256: str | None) -> None:
    """Write the pickle (plain float32 array, protocol 2: DAZLE's scripts read it) and its .json sidecar."""
    out = Path(out)
    content = pickle.dumps(np.ascontiguousarray(made.vectors, dtype=np.float32), protocol=2)
    # numpy 1, which DAZLE's scripts run on, knows the function by its old module only; numpy 2 knows both
    content = content.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n", 1)
    sidecar = {
        "source": source,
        "source_sha256": source_sha256,
        "sha256": hashlib.sha256(content).hexdigest(),
        "shape": list(made.vectors.shape),
        "zero_rows": np.flatnonzero(~made.vectors.any(1)).tolist(),
        "names": made.names,
        "words": made.words,
        "out_of_vocabulary": made.unknown,
    }
    out.with_suffix(".json").unlink(missing_ok=True)  # never a sidecar of other vectors
    write_bytes(out, content)
    write_bytes(out.with_suffix(".json"), (json.dumps(sidecar, indent=1) + "\n").encode())


def load_attribute_vectors(path: Path | str, K: int) -> np.ndarray:
    """Attribute vectors (K,300) float32.

    A row of zeros is accepted only where the sidecar declares it (the published SUN file has one: man-made).

    Raises:
        UserError: missing or unsafe file, wrong shape, not finite, an undeclared zero row, or not the sidecar's file.
    """
    path = Path(path)
    vectors = load_array_pickle(path)
    if vectors.shape != (K, V):
        raise UserError(f"{path} holds an array of shape {vectors.shape}; ({K}, {V}) is needed")
    with np.errstate(over="ignore"):  # to infinity, which the next line refuses
        vectors = vectors.astype(np.float32)
    if not np.isfinite(vectors).all():
        raise UserError(f"{path} holds values that are not finite; make the vectors again")
    declared: list[int] = []
    sidecar = path.with_suffix(".json")
    if sidecar.is_file():
        record = read_json(sidecar)
        try:
            expected, declared = record["sha256"], [int(row) for row in record.get("zero_rows", [])]
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise UserError(f"{sidecar} is damaged ({error}); make the vectors again") from error
        if expected != sha256_file(path):
            raise UserError(f"{path} is not the file that {sidecar.name} describes; make the vectors again")
    zero = sorted(set(np.flatnonzero(~vectors.any(1)).tolist()) - set(declared))
    if zero:
        raise UserError(f"{path}: attributes {[z + 1 for z in zero]} have a vector of zeros; make the vectors again")
    return vectors


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    """Rows scaled to length 1; rows of zeros stay zeros."""
    norm = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.where(norm > 0, norm, 1)).astype(vectors.dtype)


def hashed_word_vectors(words: Sequence[str], dim: int = V) -> np.ndarray:
    """A fixed random unit vector per word (len(words),dim) float32, drawn from the word's SHA-256."""
    rows = np.empty((len(words), dim), np.float32)
    for row, word in zip(rows, words, strict=True):
        seed = int.from_bytes(hashlib.sha256(word.encode()).digest(), "big")
        draw = np.random.default_rng(seed).standard_normal(dim)
        row[:] = draw / np.linalg.norm(draw)
    return rows


def write_demo_vectors(attribute_file: Path | str, out: Path | str) -> None:
    """Vectors of an attribute file (``1 has_wing_color::red`` lines) from hashed words: no download."""
    names = read_names_file(attribute_file)
    words = sorted({w for name in names for w in clean_name(name)})
    made = sum_vectors(names, dict(zip(words, hashed_word_vectors(words), strict=True)))
    write_attribute_vectors(out, made, "hashed words (no meaning; demo only)", None)


@dataclass
class Consistency:
    """How well sums of unknown word vectors explain given rows."""

    words: int
    rank: int
    max_residual: float  # largest absolute error of any value
    relative_residual: float  # Frobenius, against the rows


def row_consistency(words: Sequence[Sequence[str]], vectors: np.ndarray) -> Consistency:
    """Least-squares word vectors for ``vectors`` (K,V) = sums over ``words`` (K,) and what they leave unexplained.

    A residual near 0 is necessary, not sufficient: words that always occur together cannot be told apart.
    """
    vocabulary = {w: j for j, w in enumerate(sorted({w for row in words for w in row}))}
    counts = np.zeros((len(words), len(vocabulary)))
    for k, row in enumerate(words):
        for w in row:
            counts[k, vocabulary[w]] += 1
    rows = np.asarray(vectors, np.float64)
    solution, _, rank, _ = np.linalg.lstsq(counts, rows, rcond=None)
    left = counts @ solution - rows
    relative = float(np.linalg.norm(left) / np.linalg.norm(rows))
    return Consistency(len(vocabulary), int(rank), float(np.abs(left).max()), relative)


def single_word_share(vector: np.ndarray) -> float:
    """Share of values with 8 significant bits: 1.0 for one word2vec-google-news vector, about 0.5 or less for a sum."""
    value = np.asarray(vector, np.float64)
    mantissa = np.frexp(value)[0] * 256
    return float(np.mean(np.abs(mantissa - np.round(mantissa)) < 256 * 1e-6))


def main(dataset: DataSet, arguments: Sequence[str] | None = None) -> int:
    """Command line of extract_feature/extract_attribute_w2v_<DS>.py."""
    name = DATASETS[dataset.name].source
    p = argparse.ArgumentParser(description=f"Write w2v/{name}_attribute.pkl: word vectors of {name}'s attributes.")
    sources = f"{' or '.join(MODELS)} (through gensim), a GloVe .txt, word2vec .bin or gensim .kv file, or a ready "
    sources += "(K,300) .pkl (default: %(default)s)"
    p.add_argument("--source", default=MODELS[0], metavar="NAME_OR_PATH", help=sources)
    p.add_argument("--attributes", type=Path, help="file (or its folder) with the attribute names")
    p.add_argument("--data-root", type=Path, default=Path("data"), help="where the data sets are (default: data)")
    p.add_argument("--out", type=Path, default=Path("w2v") / f"{name}_attribute.pkl", help="default: %(default)s")
    a = p.parse_args(arguments)
    names = read_attribute_names(dataset, a.data_root, a.attributes)
    local = Path(a.source)
    if local.suffix in (".pkl", ".pickle"):
        vectors = load_array_pickle(local).astype(np.float32)
        if vectors.shape != (len(names), V) or not np.isfinite(vectors).all():
            raise UserError(f"{local}: {vectors.shape}, finite ({len(names)}, {V}) is needed for {name}")
        made = AttributeVectors(vectors, names, [], {})
        for k in np.flatnonzero(~vectors.any(1)):
            log.warning("%s: its vector in %s is all zeros; kept as published", names[k], local.name)
            made.unknown[names[k]] = clean_name(names[k])
    else:
        made = sum_vectors(names, load_vocabulary(a.source))
    # only the file's name goes into the record: a path means nothing on another machine
    digest = sha256_file(local) if local.is_file() else None
    write_attribute_vectors(a.out, made, local.name if local.is_file() else a.source, digest)
    log.info("wrote %s %s", a.out, made.vectors.shape)
    return 0
