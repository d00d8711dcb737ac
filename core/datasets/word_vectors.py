"""Readers of word vectors: GloVe's and fastText's text, word2vec's binary files, and what gensim downloads.

Files of gigabytes are read as streams, and only the wanted words are kept.
"""

from __future__ import annotations

import gzip
import logging
import re
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

import numpy as np

from core.datasets.text_vectors import SOURCES
from core.files.errors import UserError
from core.files.kinds import missing, unreadable, what_it_is

log = logging.getLogger(__name__)

MODELS = ("glove-wiki-gigaword-300", "word2vec-google-news-300")
FORMATS = "GloVe's or fastText's text (.txt, .vec, also .gz or .zip) or word2vec .bin[.gz]"
WIDEST = 1 << 14  # numbers a vector
_HEAD = 1 << 20  # bytes that are looked at to tell the format
_BOM = b"\xef\xbb\xbf"

_Rows = Iterator[tuple[bytes, np.ndarray]]  # word and vector


def load_words(source: str, words: Sequence[str]) -> dict[str, np.ndarray]:
    """Vectors (V,) of those of ``words`` that a file, or a model that gensim downloads, has; runs nothing in it."""
    if not Path(source).is_file() and source not in MODELS:
        raise UserError(f"{missing(source, 'file of word vectors')}, nor is it one of {', '.join((*MODELS, *SOURCES))}")
    path = _downloaded(source) if source in MODELS else source
    if source.endswith((".kv", ".model")):
        how = "save its KeyedVectors (of a .model: its .wv) with save_word2vec_format(FILE.vec), and give that"
        raise UserError(f"{source} is gensim's own format, a pickle; {how}")
    try:
        with np.errstate(over="ignore"):  # to infinity, which is refused where it is used
            return _read_words(path, {word.encode(): word for word in words})
    except UserError:
        raise
    except Exception as error:  # a damaged gzip or zip raises nearly anything
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


def _read_words(path: str, wanted: Mapping[bytes, str]) -> dict[str, np.ndarray]:
    """From a text file with or without a header ``count V``, or word2vec's binary one."""
    with _opened(path) as handle:
        lines = handle.read(_HEAD).removeprefix(_BOM).split(b"\n")
    header = re.fullmatch(rb"(-?\d+)\s(-?\d+)\s*", lines[0])
    count, V = map(int, header.groups()) if header else (0, 0)
    body = lines[1:] if header else lines
    binary = bool(header) and any(b"\0" in line for line in body)
    widths = Counter(width for line in body[:100] if (width := _width(line)))
    width = V if binary else max(widths, key=widths.__getitem__, default=0)  # not each: some tokens hold spaces
    if header and (count <= 0 or width != V or not 0 < V <= WIDEST):
        raise UserError(f"{path}: its header names {count} vectors of {V} numbers, its lines hold {width}")
    if not width:
        what = f"it is {what}" if (what := what_it_is(path)) else "no line is a word and numbers"
        raise UserError(f"{path} holds no word vectors: {what}. Give {FORMATS}")
    vectors: dict[str, np.ndarray] = {}
    rows = 0
    with _opened(path) as handle:
        if header:
            handle.readline()
        for word, vector in _binary_rows(handle, V) if binary else _text_rows(handle, width, wanted):
            rows += 1
            if word in wanted:
                vectors.setdefault(wanted[word], vector)  # of a word that is there twice, gensim takes the first too
    if rows < count:
        raise UserError(f"{path} ends after {rows} vectors, but its header names {count}: truncated; get it again")
    return vectors


def _width(line: bytes) -> int:
    """How many numbers follow the word of a line; 0 where other things do."""
    try:
        return np.array(line.split()[1:], np.float32).size
    except ValueError:
        return 0


def _text_rows(handle: IO[bytes], width: int, wanted: Mapping[bytes, str]) -> _Rows:
    for line in handle:
        word, *numbers = line.removeprefix(_BOM).split(None, 1) or [b""]
        values = numbers[0].split() if numbers and word in wanted else []
        # other counts are of tokens with spaces, whose other words are the first of them: glove.840B has some
        yield (word, np.array(values, np.float32)) if len(values) == width else (b"", np.empty(0))


def _binary_rows(handle: IO[bytes], V: int) -> _Rows:
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


def _opened(path: str) -> IO[bytes]:
    """A file as it is, unpacked by gzip, or the only file of vectors in a zip archive."""
    if zipfile.is_zipfile(path):
        archive = zipfile.ZipFile(path)
        names = [name for name in archive.namelist() if not name.startswith("__MACOSX/")]
        texts = [name for name in names if name.endswith((".txt", ".vec", ".bin"))]
        if len(texts) != 1:
            raise UserError(f"{path} is a zip archive of {names[:9]}: unpack it, and give the .txt, .vec or .bin file")
        return archive.open(texts[0])
    with open(path, "rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
    return gzip.open(path) if packed else open(path, "rb")  # type: ignore[return-value]
