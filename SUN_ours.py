"""SUN: train, choose on validation classes, report T1 U S H AUSUC.

    python extract_feature/extract_feature_map_ResNet_101_SUN.py
        # images -> data/SUN/feature_map_ResNet_101_SUN.hdf5
    python extract_feature/extract_attribute_w2v_SUN.py
        # names  -> w2v/SUN_attribute.pkl
    python SUN_ours.py                                     # vsmr, one seed
    python SUN_ours.py --method dazle --seeds 5            # mean ± std over five seeds

The course of events is core/commands/train.py:main; the method is core/VSMR.py on core/attention.py.
"""

from core.commands.train import main
from core.files.errors import run_cli

if __name__ == "__main__":
    raise SystemExit(run_cli(main, "SUN", __doc__))
