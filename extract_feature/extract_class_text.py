"""Text embeddings of classes by a CLIP model, for --method clip on features of the same model.

    python extract_feature/extract_class_text.py CUB --model open_clip:ViT-B-16/openai

writes data/CUB/class_text_open_clip_ViT-B-16_openai_CUB.safetensors: of each class's name, and of its name with
attributes. docs/backbones.md has the whole course.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this clone's core, whatever else is installed

from core.files.errors import run_cli

if __name__ == "__main__":
    raise SystemExit(run_cli("core.commands.class_text", __doc__))
