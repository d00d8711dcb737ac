"""Word vectors of attributes: one (K,V) float32 array a data set, the sum of the vectors of each name's words.

The published files (DAZLE's) are sums of word2vec-google-news-300 vectors, V = 300.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import logging
import pickle
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from core.datasets.names import FALLBACK, clean_name, read_names_file, words_of
from core.datasets.text_vectors import OPEN_CLIP, SENTENCE, SOURCES, attribute_text, encode_attributes
from core.files.atomic import read_json, sha256_file, write_bytes
from core.files.errors import UserError
from core.files.kinds import missing, unreadable, what_it_is
from core.files.pickles import ArrayUnpickler, load_array_pickle

log = logging.getLogger(__name__)

MODELS = ("glove-wiki-gigaword-300", "word2vec-google-news-300")
FORMATS = "GloVe's or fastText's text (.txt, .vec, also .gz or .zip), word2vec .bin[.gz], gensim .kv or .model"
_READY = (".pkl", ".pickle", ".npy")
_HEAD = 1 << 20  # bytes that are looked at to tell the format
_WIDEST = 1 << 14  # numbers a vector
_WORDS = (".txt", ".vec", ".bin", ".kv", ".model", ".gz", ".zip")  # endings of files of word vectors
_BOM = b"\xef\xbb\xbf"


@dataclass
class AttributeVectors:
    """Vectors of a data set's attributes and how they were made."""

    vectors: np.ndarray  # (K,V) float32
    names: list[str]  # (K,)
    words: list[list[str]]  # (K,) the words summed; empty for ready-made vectors
    unknown: dict[str, list[str]]  # attribute -> its words outside the vocabulary


def load_words(source: str, words: Sequence[str]) -> dict[str, np.ndarray]:
    """Vectors (V,) of those of ``words`` that a file, or a model that gensim downloads, has; runs nothing in it.

    Raises:
        UserError: unknown name, failed download, missing or damaged file, or a format that is not read.
    """
    if not Path(source).is_file() and source not in MODELS:
        raise UserError(f"{missing(source, 'file of word vectors')}, nor is it one of {', '.join((*MODELS, *SOURCES))}")
    path = source if Path(source).is_file() else _downloaded(source)
    try:
        return read_words(path, list(words))
    except UserError:
        raise
    except Exception as error:  # a damaged file raises nearly anything
        raise unreadable(path, "file of word vectors", error) from error


def _downloaded(name: str) -> str:
    """The file of a gensim-data model, which gensim downloads once."""
    try:
        import gensim.downloader

        logging.getLogger("gensim").setLevel(logging.CRITICAL)  # it prints a traceback where there is no network
        log.info("loading %s through gensim (downloaded once, some GB)", name)
        return str(gensim.downloader.load(name, return_path=True))
    except Exception as error:  # no gensim, no network
        raise UserError(
            f"cannot get the word vectors {name} ({type(error).__name__}: {error}). Download a file, such as "
            f"glove.6B.zip from nlp.stanford.edu/projects/glove, and give it with --source PATH: {FORMATS}."
        ) from error


def read_words(path: str, words: list[str]) -> dict[str, np.ndarray]:
    """See :func:`load_words`."""
    if path.endswith((".kv", ".model")):
        return _gensim(Path(path), set(words))
    with _opened(path) as handle:
        head = handle.read(_HEAD).removeprefix(_BOM)
    if head.startswith(b"\xba\x16\x4f\x2f"):
        raise UserError(
            f"{path} is a fastText model (.bin); give the .vec file that its download page offers beside it"
        )
    first, _, rest = head.partition(b"\n")
    count, V = 0, 0
    if len(numbers := first.split()) == 2 and all(number.lstrip(b"-").isdigit() for number in numbers):
        count, V = map(int, numbers)
        if not 0 < V <= _WIDEST or count <= 0:
            raise UserError(f"{path}: its header names {count} vectors of {V} numbers")
    lines = (rest if V else head).split(b"\n")
    widths = [w for line in lines[:100] if (w := _numbers(line))]
    binary = bool(V) and (path.removesuffix(".gz").endswith(".bin") or not widths)
    if not binary and not widths:
        what = f"it is {what}" if (what := what_it_is(path)) else "no line is a word and numbers"
        raise UserError(f"{path} holds no word vectors: {what}. Give {FORMATS}")
    width = max(widths, key=widths.count, default=0)  # not each: a token of GloVe's may end in numbers
    if not binary and V not in (0, width):
        raise UserError(f"{path}: its header names vectors of {V} numbers, its lines hold {width}")
    V = V or width
    wanted, found, rows = {word.encode(): word for word in words}, dict[str, np.ndarray](), 0
    mark = b"\t" if sum(b"\t" in line for line in lines[:100]) > len(lines[:100]) // 2 else b" "
    with _opened(path) as handle:
        if handle.peek(len(_BOM))[: len(_BOM)] == _BOM:  # type: ignore[attr-defined]
            handle.read(len(_BOM))
        if count:
            handle.readline()
        for token, vector in _binary_rows(handle, V) if binary else _text_rows(handle, V, wanted, mark):
            rows += 1
            if token in wanted:
                if len(vector) != V:
                    raise UserError(f"{path}: the vector of {wanted[token]!r} has {len(vector)} numbers, others {V}")
                found.setdefault(wanted[token], vector)  # of a word that is there twice, gensim takes the first too
    if rows < count:
        raise UserError(f"{path} ends after {rows} vectors, but its header names {count}: truncated; get it again")
    return found


@contextlib.contextmanager
def _opened(path: str) -> Iterator[IO[bytes]]:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            there = [name for name in archive.namelist() if not name.startswith("__MACOSX/")]
            texts = [name for name in there if name.endswith((".txt", ".vec", ".bin"))]
            if len(texts) > 1:
                raise UserError(f"{path} is a zip archive of {texts[:9]}: unpack it, and give the file you want")
            if not texts:
                raise UserError(f"{path} is a zip archive of {there[:9]}, none of which is a .txt, .vec or .bin")
            with archive.open(texts[0]) as handle:
                yield handle
    else:
        with open(path, "rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
        with gzip.open(path) if packed else open(path, "rb") as handle:
            yield handle  # type: ignore[misc]


def _numbers(line: bytes) -> int:
    """How many numbers a line ends in; its first piece is a word, whatever it is."""
    n = 0
    for piece in reversed(line.split()[1:]):
        try:
            float(piece)
        except ValueError:
            break
        n += 1
    return n


def _text_rows(handle: IO[bytes], V: int, wanted: Mapping[bytes, str], mark: bytes) -> Iterator[tuple[bytes, Any]]:
    for line in handle:
        token, _, rest = line.partition(mark)
        if token not in wanted:
            yield b"", ()
        elif len(pieces := rest.split()) <= V:  # of more, the first belong to a token with spaces: glove.840B has some
            yield token, np.array(pieces, dtype=np.float32)


def _binary_rows(handle: IO[bytes], V: int) -> Iterator[tuple[bytes, Any]]:
    buffer, at = b"", 0
    while True:
        end = buffer.find(b" ", at) + 1
        if not end or end + 4 * V > len(buffer):
            if not (more := handle.read(1 << 24)):
                return
            buffer, at = buffer[at:] + more, 0
        else:
            yield buffer[at:end].strip(), np.frombuffer(buffer, "<f4", V, end)
            at = end + 4 * V


_UNUSED = (("collections", "defaultdict"), ("builtins", "int"), ("builtins", "hash"))  # in a .model, beside the vectors


class _GensimUnpickler(ArrayUnpickler):
    """Plain arrays, and gensim's classes as records: attributes only, no code."""

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith(("gensim.", "numpy.random")) or (module, name) in _UNUSED:
            return _Record
        return super().find_class(module, name)


class _Record:
    def __init__(self, *_: Any) -> None: ...

    def __setitem__(self, *_: Any) -> None: ...

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)


def _gensim(path: Path, words: set[str]) -> dict[str, np.ndarray]:
    try:
        record = _GensimUnpickler(path.read_bytes()).load()
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    fields = vars(record) if isinstance(record, _Record) else {}
    beside = [path.with_name(path.name + ".vectors.npy")]  # gensim stores large arrays beside the pickle
    if isinstance(inner := fields.get("wv"), _Record):
        fields, beside = vars(inner), [path.with_name(path.name + ".wv.vectors.npy")]
    if "vectors_ngrams" in fields or "vectors_vocab" in fields:
        raise UserError(
            f"{path} is a FastText model of gensim's, which makes a word's vector of pieces of the word. Save the "
            "vectors themselves: gensim.models.FastText.load(FILE).wv.save_word2vec_format('words.vec')"
        )
    known, vectors = fields.get("index_to_key", fields.get("index2word")), fields.get("vectors")
    if not isinstance(vectors, np.ndarray) and beside[0].is_file():
        vectors = np.load(beside[0], mmap_mode="r", allow_pickle=False)
    if not isinstance(known, list) or not isinstance(vectors, np.ndarray):
        raise UserError(
            f"{path} has no gensim word list and vectors; is {beside[0].name}, which gensim saves too, there?"
        )
    if vectors.ndim != 2 or vectors.dtype.kind != "f" or len(known) != len(vectors):
        raise UserError(
            f"{path}: vectors of {vectors.dtype} {vectors.shape} for {len(known)} words, not one vector a word"
        )
    return {word: np.array(vector) for word, vector in zip(known, vectors, strict=True) if word in words}


def sum_vectors(names: Sequence[str], vocabulary: Mapping[str, np.ndarray]) -> AttributeVectors:
    """Sum the vectors of each name's words -> (K,V) float32; words outside the vocabulary are logged and listed.

    Raises:
        UserError: an attribute none of whose words is known, or whose words' vectors are damaged.
    """
    vectors: list[np.ndarray] = []
    words: list[list[str]] = []
    unknown: dict[str, list[str]] = {}
    for k, name in enumerate(names):
        used = []
        for word in clean_name(name):
            parts = [word] if word in vocabulary else FALLBACK.get(word, word).split()
            used += [w for w in parts if w in vocabulary]
            if missing := [w for w in parts if w not in vocabulary]:
                unknown.setdefault(name, []).extend(missing)
        if not used:
            raise UserError(f"no word of attribute {k + 1} ({name!r}) is among the word vectors; use another --source")
        vectors.append(np.sum([np.asarray(vocabulary[w], dtype=np.float64) for w in used], axis=0))
        if not (np.abs(vectors[k]) <= np.finfo(np.float32).max).all():  # NaN is not either
            raise UserError(f"the word vectors of attribute {k + 1} ({name!r}) are not finite; use another --source")
        words.append(used)
    for name, missing in unknown.items():
        log.warning("%s: outside the vocabulary, left out: %s", name, ", ".join(missing))
    return AttributeVectors(np.array(vectors, np.float32), list(names), words, unknown)


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


def load_attribute_vectors(path: Path | str, K: int, command: str = "") -> np.ndarray:
    """Attribute vectors (K,V) float32; ``command`` makes them, for messages.

    A row of zeros is accepted only where the sidecar declares it (the published SUN file has one: man-made).

    Raises:
        UserError: missing or unsafe file, wrong shape, not finite, an undeclared zero row, or not the sidecar's file.
    """
    path = Path(path)
    again = f"make the vectors again{f' with: {command}' if command else ''}"
    if not path.is_file():
        raise UserError(missing(path, "attribute vectors") + (f". Make them with: {command}" if command else ""))
    if path.suffix.lower() in _WORDS:
        raise UserError(
            f"{path} seems to hold word vectors; vectors of attributes (.pkl or .npy) are needed, which are made of "
            f"them with: {command or 'python extract_feature/extract_attribute_w2v_AWA2.py'} --source {path}"
        )
    vectors = _finite(path, _ready(path), K, again)
    declared: list[int] = []
    sidecar = path.with_suffix(".json")
    if sidecar.is_file():
        record = read_json(sidecar)
        try:
            expected, declared = record["sha256"], [int(row) for row in record.get("zero_rows", [])]
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise UserError(f"{sidecar} is damaged ({error}); {again}") from error
        if expected != sha256_file(path):
            raise UserError(f"{path} is not the file that {sidecar.name} describes; {again}")
    zero = sorted(set(np.flatnonzero(~vectors.any(1)).tolist()) - set(declared))
    if zero:
        raise UserError(f"{path}: attributes {[z + 1 for z in zero]} have a vector of zeros; {again}")
    return vectors


def _finite(path: Path, vectors: np.ndarray, K: int, again: str) -> np.ndarray:
    """(K,V) float32"""
    if vectors.ndim != 2 or len(vectors) != K or not 0 < vectors.shape[1] <= _WIDEST or vectors.dtype.kind not in "fiu":
        turned = vectors.ndim == 2 and vectors.shape[1] == K
        mend = "it would be as its transpose" if turned else again
        raise UserError(
            f"{path} holds an array of shape {vectors.shape}; ({K}, V), one row an attribute, is needed: {mend}"
        )
    with np.errstate(over="ignore"):  # to infinity, which the next line refuses
        vectors = vectors.astype(np.float32)
    if not np.isfinite(vectors).all():
        k = int(np.argwhere(~np.isfinite(vectors))[0, 0])
        raise UserError(f"{path} holds values that are not finite, first for attribute {k + 1}; {again}")
    return vectors


def _ready(path: Path) -> np.ndarray:
    if path.suffix.lower() != ".npy":
        return load_array_pickle(path)
    try:
        return read_npy(str(path))
    except UserError:
        raise
    except Exception as error:  # a damaged file raises nearly anything
        raise unreadable(path, "numpy array", error) from error


def read_npy(path: str) -> np.ndarray:
    """The array of a .npy file."""
    try:
        array: Any = np.load(path, allow_pickle=False)
    except ValueError as error:
        if "Object arrays" not in str(error):
            raise
        array = None
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu":
        what = f"{array.dtype} values" if isinstance(array, np.ndarray) else "Python objects"
        raise UserError(f"{path} holds {what}; one array of real numbers is needed: np.save(FILE, a.astype('float32'))")
    return array


def hashed_word_vectors(words: Sequence[str], dim: int = 300) -> np.ndarray:
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
    words = words_of(names)
    made = sum_vectors(names, dict(zip(words, hashed_word_vectors(words), strict=True)))
    write_attribute_vectors(out, made, "hashed words (no meaning; demo only)", None)


def attribute_vectors(source: str, names: Sequence[str]) -> AttributeVectors:
    """Vectors of attributes from word vectors, a text encoder, or ready ones (K,V) from a .pkl or .npy file.

    Raises:
        UserError: no such source, or one that cannot be read or lacks what is needed.
    """
    local = Path(source)
    if source.startswith((OPEN_CLIP, SENTENCE)):
        texts = [[attribute_text(name)] for name in names]
        return AttributeVectors(encode_attributes(source, names), list(names), texts, {})
    if local.suffix.lower() not in _READY or not local.is_file():
        return sum_vectors(names, load_words(source, words_of(names)))
    made = AttributeVectors(_finite(local, _ready(local), len(names), "choose another --source"), list(names), [], {})
    for k in np.flatnonzero(~made.vectors.any(1)).tolist():
        log.warning("%s: its vector in %s is all zeros; kept as published", names[k], local.name)
        made.unknown[names[k]] = clean_name(names[k])
    return made
