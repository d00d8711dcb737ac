"""CUB: train, choose on validation classes, report T1 U S H AUSUC.

    python extract_feature/extract_feature_map_ResNet_101_CUB.py
        # images -> data/CUB/feature_map_ResNet_101_CUB.hdf5
    python extract_feature/extract_attribute_w2v_CUB.py
        # names  -> w2v/CUB_attribute.pkl
    python CUB50_ours.py                                     # vsmr, one seed
    python CUB50_ours.py --method dazle --seeds 5            # mean ± std over five seeds
    python CUB50_ours.py --split cub50                       # the authors' 40+10 class subset

The course of events is core/commands/train.py:main; the method is core/VSMR.py on core/attention.py.
"""

from core.commands.train import main
from core.files.errors import run_cli

if __name__ == "__main__":
    raise SystemExit(run_cli(main, "CUB", __doc__))
