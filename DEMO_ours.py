"""The whole pipeline on a data set drawn by this repository: no download, no GPU.

    python DEMO_ours.py                       # vsmr
    python DEMO_ours.py --method dazle
    python DEMO_ours.py --page                # and a page that shows the reasons

Renders the images, trains a small backbone on the training classes' images, extracts region features, makes attribute
vectors, trains, and prints the same table as the other drivers. Everything is made once and kept under data/.
"""

import sys
import time

from core.commands.train import main
from core.files.errors import run_cli

if __name__ == "__main__":
    started = time.monotonic()
    code = run_cli(main, "DEMO", __doc__)
    if code == 0:
        sys.stderr.write(f"{time.monotonic() - started:.0f} s in all\n")
    raise SystemExit(code)
