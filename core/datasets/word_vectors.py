"""Readers of word vectors: GloVe's and fastText's text, as a stream of which the wanted words are kept, and word2vec's
binary files by gensim, which also downloads two models.
"""

from __future__ import annotations

import gzip
import itertools
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np

from core.datasets.text_vectors import SOURCES
from core.files.errors import UserError, first_line
from core.files.kinds import missing, what_it_is

log = logging.getLogger(__name__)

MODELS = ("glove-wiki-gigaword-300", "word2vec-google-news-300")
FORMATS = "GloVe's or fastText's text (.txt, .vec, also .gz) or word2vec .bin[.gz]"


def load_words(source: str, words: Sequence[str]) -> dict[str, np.ndarray]:
    """Vectors (V,) of those of ``words`` that a file, or a model that gensim downloads, has; runs nothing in it."""
    if not Path(source).is_file() and source not in MODELS:
        raise UserError(f"{missing(source, 'file of word vectors')}, nor is it one of {', '.join((*MODELS, *SOURCES))}")
    path = _downloaded(source) if source in MODELS else source
    try:
        with _opened(path) as handle:
            binary = b"\0" in handle.read(1 << 20)
        if not binary:
            return _from_text(path, words)
        from gensim.models import KeyedVectors

        found = KeyedVectors.load_word2vec_format(path, binary=True)
        return {word: found[word] for word in words if word in found}
    except Exception as error:  # a damaged file raises nearly anything
        why = f"it is {what}" if (what := what_it_is(path)) else first_line(error)
        raise UserError(f"{path} holds no word vectors that can be read ({why}). Give {FORMATS}") from error


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
            f"glove.6B.zip from nlp.stanford.edu/projects/glove, unpack it, and give it with --source PATH: {FORMATS}."
        ) from error


def _from_text(path: str, words: Sequence[str]) -> dict[str, np.ndarray]:
    """From lines of a word and V numbers, which a header ``count V`` may precede."""
    wanted, found, rows = {word.encode(): word for word in words}, dict[str, np.ndarray](), 0
    with _opened(path) as lines:
        first = lines.readline().removeprefix(b"\xef\xbb\xbf")
        header = re.fullmatch(rb"(\d+)\s(\d+)\s*", first)
        count, V = map(int, header.groups()) if header else (0, np.array(first.split()[1:], np.float32).size)
        if not V:
            raise ValueError("its first line is no word and numbers")
        for line in lines if header else itertools.chain([first], lines):
            rows += 1
            word, *numbers = line.split(None, 1) or [b""]
            # other counts are of tokens with spaces, whose other words are the first of them: glove.840B has some
            if word in wanted and numbers and len(values := numbers[0].split()) == V:
                found.setdefault(wanted[word], np.array(values, np.float32))  # gensim takes the first of two, too
    if rows < count:
        raise ValueError(f"it ends after {rows} vectors, but its header names {count}: truncated, get it again")
    return found


def _opened(path: str) -> IO[bytes]:
    return gzip.open(path) if path.endswith(".gz") else open(path, "rb")  # type: ignore[return-value]
