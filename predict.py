"""Photographs in, classes and reasons out, from a finished run.

    python predict.py results/CUB/.../vsmr/seed0 photo.jpg              # classes, margin, what spoke for the first
    python predict.py results/CUB/.../vsmr/seed0 folder/ --top 5 --out predictions.csv
    python predict.py results/CUB/.../vsmr/seed0 folder/ --among unseen
    python predict.py results/CUB/.../vsmr/seed0 folder/ --add-classes more.csv     # classes by description alone
    python predict.py results/CUB/.../vsmr/seed0 folder/ --explain page/            # why, in a browser
    python predict.py results/CUB/.../vsmr/seed0 --export model.onnx --with-backbone

It needs the run's folder and the backbone's weights (--weights FILE where they were a file), no features. An image that
cannot be read is a row with its reason, and the exit code is 2 at the end. docs/predict.md says more.
"""

from core.commands.predict import main
from core.files.errors import run_cli

if __name__ == "__main__":
    raise SystemExit(run_cli(main, __doc__))
