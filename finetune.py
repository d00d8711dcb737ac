"""Fine-tune a backbone on images of seen classes alone; its weights then make features like any others.

    python finetune.py CUB --split 0
        # for features that are validated on with --seed 0, and tested
    python extract_feature/extract_feature_map_ResNet_101_CUB.py \\
        --weights data/CUB/finetuned_ResNet_101_split0_val.safetensors
    python CUB50_ours.py --seed 0 --features data/CUB/feature_map_ResNet_101_finetuned_split0_val_CUB.hdf5

Images of validation classes, of unseen classes and of the test sets are never opened. docs/backbones.md says what the
files of the several folds are for.
"""

from core.commands.finetune import main
from core.files.errors import run_cli

if __name__ == "__main__":
    raise SystemExit(run_cli(main, __doc__))
