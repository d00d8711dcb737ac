"""AWA2: train, choose on validation classes, report T1 U S H AUSUC.

    python extract_feature/extract_feature_map_ResNet_101_AWA2.py
        # images -> data/AWA2/feature_map_ResNet_101_AWA2.hdf5
    python extract_feature/extract_attribute_w2v_AWA2.py
        # names  -> w2v/AWA2_attribute.pkl
    python AWA2_ours.py                                     # vsmr, one seed
    python AWA2_ours.py --method dazle --seeds 5            # mean ± std over five seeds

The course of events is core/commands/train.py:main; the method is core/VSMR.py on core/attention.py.
"""

from core.commands.train import main
from core.files.errors import run_cli

if __name__ == "__main__":
    raise SystemExit(run_cli(main, "AWA2", __doc__))
