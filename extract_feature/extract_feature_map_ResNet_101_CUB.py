"""Region features of CUB from a frozen ResNet-101 (ImageNet, IMAGENET1K_V1, layer4: 2048 x 7 x 7).

    python extract_feature/extract_feature_map_ResNet_101_CUB.py

reads the images and xlsa17's .mat files under data/ (see data/CUB.md) and writes
data/CUB/feature_map_ResNet_101_CUB.hdf5. Interrupted? The same command continues. --help lists every option.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this clone's core, whatever else is installed

from core.commands.extract import main
from core.files.errors import run_cli

if __name__ == "__main__":
    raise SystemExit(run_cli(main, "CUB", __doc__))
