"""A folder of one's own: photographs by class and a sheet that describes the classes, in; a table and a model, out.

    python OWN_ours.py --data-root my_birds
    python OWN_ours.py --data-root my_birds --unseen heron crane --seeds 5
    python OWN_ours.py --data-root my_birds --vectors glove-wiki-gigaword-300 --method dazle

    my_birds/images/<class>/*.jpg      photographs; also png, webp, gif, bmp, tiff, ppm
    my_birds/attributes.csv            class,<attribute>,<attribute>,...: one row a class, any real numbers
    my_birds/unseen.txt, splits.csv    optional: which classes, or images, are not trained on

A class with a row and no photographs is a candidate: the model can name it. Everything made lies below the data root
(features and vectors in OWN/ and w2v/, runs in results/). Interrupted? The same command continues.
docs/own-data.md tells the rest; the course of events is core/commands/own.py.
"""

from core.commands.own import main
from core.files.errors import run_cli

if __name__ == "__main__":
    raise SystemExit(run_cli(main, __doc__))
