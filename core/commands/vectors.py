"""The command line of attribute word vectors, which the scripts in extract_feature/ share."""

import logging
from collections.abc import Sequence
from pathlib import Path

from core.commands.parser import Parser
from core.datasets.class_text import SENTENCE
from core.datasets.names import read_attribute_names, read_names_file
from core.datasets.paths import DEFAULT_ROOT, vectors_file
from core.datasets.registry import DATASETS
from core.datasets.vectors import FORMATS, MODELS, attribute_vectors, write_attribute_vectors
from core.files.errors import UserError

log = logging.getLogger(__name__)


def main(name: str, description: str | None = None, argv: Sequence[str] | None = None) -> int:
    dataset, p = DATASETS[name], Parser(description)
    sources = f"{' or '.join(MODELS)} (through gensim), {SENTENCE}NAME (a text encoder), a file of word vectors "
    sources += f"({FORMATS}), or ready vectors (K,V) of the attributes, .pkl or .npy (default: %(default)s)"
    p.add_argument("--source", default=MODELS[0], metavar="NAME_OR_PATH", help=sources)
    p.add_argument("--attributes", type=Path, help="file with the attribute names")
    p.add_argument("--data-root", type=Path, default=DEFAULT_ROOT, help="where the data sets are (%(default)s)")
    p.add_argument("--out", type=Path, help=f"default: ROOT/w2v/{name}_attribute.pkl; for the root data: w2v/")
    a = p.parse_args(argv)
    out = a.out or vectors_file(a.data_root, dataset)
    if out.suffix.lower() not in (".pkl", ".pickle"):  # a .json of that name is written too
        raise UserError(f"--out {out}: the name of a file of attribute vectors ends in .pkl")
    names = read_names_file(a.attributes) if a.attributes else read_attribute_names(dataset, a.data_root)
    made = attribute_vectors(a.source, names)
    write_attribute_vectors(out, made, a.source)
    log.info("wrote %s %s", out, made.vectors.shape)
    return 0
