"""Word vectors of CUB's attribute names: the sum of the vectors of a name's words, (K,300) float32.

    python extract_feature/extract_attribute_w2v_CUB.py                                   # GloVe, downloaded by gensim
    python extract_feature/extract_attribute_w2v_CUB.py --source word2vec-google-news-300 # what DAZLE's scripts load
    python extract_feature/extract_attribute_w2v_CUB.py --source glove.6B.300d.txt        # a local file

writes w2v/CUB_attribute.pkl and, beside it, a .json with source, words and out-of-vocabulary words.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this clone's core, whatever else is installed

from core.commands.vectors import main
from core.files.errors import run_cli

if __name__ == "__main__":
    raise SystemExit(run_cli(main, "CUB", __doc__))
