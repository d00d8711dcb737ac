"""Download and unpack a data set: python data/get_data.py CUB|AWA2|SUN|xlsa17.

An interrupted download starts anew; `curl -C - -O URL` continues one. Pages beside this file say what each data set is.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this clone's core, whatever else is installed

from core.commands.get_data import main
from core.files.errors import run_cli

if __name__ == "__main__":
    raise SystemExit(run_cli(main, __doc__))
