"""Readers of word vectors: GloVe's and fastText's text, word2vec's binary files, what gensim saves and downloads.

Files of gigabytes are read as streams, and only the wanted words are kept.
"""

from __future__ import annotations

import contextlib
import gzip
import logging
import pickle
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from core.datasets.text_vectors import SOURCES
from core.files.errors import UserError
from core.files.kinds import missing, unreadable, what_it_is

log = logging.getLogger(__name__)

MODELS = ("glove-wiki-gigaword-300", "word2vec-google-news-300")
FORMATS = "GloVe's or fastText's text (.txt, .vec, also .gz or .zip), word2vec .bin[.gz], gensim .kv or .model"
WIDEST = 1 << 14  # numbers a vector
_HEAD = 1 << 20  # bytes that are looked at to tell the format
_BOM = b"\xef\xbb\xbf"


def load_words(source: str, words: Sequence[str]) -> dict[str, np.ndarray]:
    """Vectors (V,) of those of ``words`` that a file, or a model that gensim downloads, has; runs nothing in it.

    Raises:
        UserError: unknown name, failed download, missing or damaged file, or a format that is not read.
    """
    if not Path(source).is_file() and source not in MODELS:
        raise UserError(f"{missing(source, 'file of word vectors')}, nor is it one of {', '.join((*MODELS, *SOURCES))}")
    path = source if Path(source).is_file() else _downloaded(source)
    try:
        return _gensim(Path(path), set(words)) if path.endswith((".kv", ".model")) else _read_words(path, words)
    except UserError:
        raise
    except Exception as error:  # a damaged gzip, zip or pickle raises nearly anything
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


def _read_words(path: str, words: Sequence[str]) -> dict[str, np.ndarray]:
    """From a text file with or without a header ``count V``, or word2vec's binary one; read as a stream."""
    with _opened(path) as handle:
        head = handle.read(_HEAD).removeprefix(_BOM)
    if head.startswith(b"\xba\x16\x4f\x2f"):
        raise UserError(
            f"{path} is a fastText model (.bin); give the .vec file that its download page offers beside it"
        )
    first, _, rest = head.partition(b"\n")
    numbers = first.split()
    header = len(numbers) == 2 and all(number.lstrip(b"-").isdigit() for number in numbers)
    count, V = map(int, numbers) if header else (0, 0)
    if header and (count <= 0 or not 0 < V <= WIDEST):
        raise UserError(f"{path}: its header names {count} vectors of {V} numbers")
    lines = (rest if header else head).split(b"\n")[:100]
    widths = [width for line in lines if (width := _numbers(line))]
    width = max(widths, key=widths.count, default=0)  # not each: a token of GloVe's may end in numbers
    binary = header and width != V and not _is_text(rest)
    if not binary and not widths:
        what = f"it is {what}" if (what := what_it_is(path)) else "no line is a word and numbers"
        raise UserError(f"{path} holds no word vectors: {what}. Give {FORMATS}")
    if header and not binary and width != V:
        raise UserError(f"{path}: its header names vectors of {V} numbers, its lines hold {width}")
    V = V or width
    wanted, found, rows = {word.encode(): word for word in words}, dict[str, np.ndarray](), 0
    mark = b"\t" if sum(b"\t" in line for line in lines) > len(lines) // 2 else b" "
    with _opened(path) as handle:
        for token, vector in _binary_rows(handle, V) if binary else _text_rows(handle, V, wanted, mark, header):
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
    """A file as it is, unpacked by gzip, or the only file of vectors in a zip archive."""
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
        return
    with open(path, "rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
    with gzip.open(path) if packed else open(path, "rb") as handle:
        yield handle  # type: ignore[misc]


def _is_text(head: bytes) -> bool:
    try:
        head.decode()
    except UnicodeDecodeError as error:
        return error.start > len(head) - 4  # a letter that is cut off
    return b"\0" not in head


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


def _text_rows(
    handle: IO[bytes], V: int, wanted: Mapping[bytes, str], mark: bytes, header: bool
) -> Iterator[tuple[bytes, Any]]:
    for n, line in enumerate(handle):
        if n == 0 and header:
            continue
        token, _, rest = line.removeprefix(_BOM if n == 0 else b"").partition(mark)
        if token not in wanted:
            yield b"", ()
        elif len(pieces := rest.split()) <= V:  # of more, the first belong to a token with spaces: glove.840B has some
            with np.errstate(over="ignore"):  # to infinity, which is refused where it is used
                yield token, np.array(pieces, dtype=np.float32)
        else:
            yield b"", ()


def _binary_rows(handle: IO[bytes], V: int) -> Iterator[tuple[bytes, Any]]:
    handle.readline()
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


class _Record:
    """In place of every class of gensim's: attributes only, no code."""

    def __init__(self, *_: Any) -> None: ...

    def __setitem__(self, *_: Any) -> None: ...

    def __setstate__(self, state: Any) -> None:
        self.__dict__.update(state if isinstance(state, dict) else {})


class _Unpickler(pickle.Unpickler):
    """Plain arrays, and the rest of what gensim saves as records; anything else is refused."""

    def find_class(self, module: str, name: str) -> Any:
        known = f"{module.removeprefix('numpy.').removeprefix('_').removeprefix('core.')}.{name}"
        if known in ("multiarray._reconstruct", "numeric._frombuffer", "numpy.ndarray", "numpy.dtype"):
            return super().find_class(module, name)
        if known in ("_codecs.encode", "codecs.encode"):  # bytes of an array in an older pickle
            return lambda text, _: text.encode("latin1")
        unused = known in ("collections.defaultdict", "builtins.int", "builtins.hash")
        if unused or module.startswith(("gensim.", "numpy.random")):
            return _Record
        raise UserError(f"the pickle asks for {module}.{name}, which is no part of word vectors; not loaded")


def _gensim(path: Path, words: set[str]) -> dict[str, np.ndarray]:
    """From what KeyedVectors.save and Word2Vec.save write; gensim itself would run what is in the pickle."""
    try:
        with open(path, "rb") as handle:
            record = _Unpickler(handle).load()
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    fields = vars(record) if isinstance(record, _Record) else {}
    beside = path.with_name(path.name + ".vectors.npy")  # gensim stores large arrays beside the pickle
    if isinstance(inner := fields.get("wv"), _Record):
        fields, beside = vars(inner), path.with_name(path.name + ".wv.vectors.npy")
    if "vectors_ngrams" in fields or "vectors_vocab" in fields:
        raise UserError(
            f"{path} is a FastText model of gensim's, which makes a word's vector of pieces of the word. Save the "
            "vectors themselves: gensim.models.FastText.load(FILE).wv.save_word2vec_format('words.vec')"
        )
    known, vectors = fields.get("index_to_key", fields.get("index2word")), fields.get("vectors")
    if vectors is None and beside.is_file():
        vectors = np.load(beside, mmap_mode="r", allow_pickle=False)
    if not isinstance(known, list) or not isinstance(vectors, np.ndarray):
        raise UserError(f"{path} has no gensim word list and vectors; is {beside.name}, which gensim saves too, there?")
    if vectors.ndim != 2 or vectors.dtype.kind != "f" or len(known) != len(vectors):
        raise UserError(
            f"{path}: vectors of {vectors.dtype} {vectors.shape} for {len(known)} words, not one vector a word"
        )
    return {word: np.array(vector) for word, vector in zip(known, vectors, strict=True) if word in words}
