"""Command line of extract_feature/extract_class_text.py."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from core.commands.parser import Parser
from core.datasets.registry import DATASETS
from core.files.errors import UserError

_log = logging.getLogger(__name__)


def main(description: str | None = None, argv: Sequence[str] | None = None) -> int:
    p = Parser(description)
    p.add_argument("dataset", choices=[*DATASETS], help="the data set")
    p.add_argument(
        "--model", required=True, metavar="open_clip:MODEL/PRETRAINED", help="as --backbone of the extraction has it"
    )
    p.add_argument("--weights", help="a weights file or random, as --weights of the extraction")
    p.add_argument("--attributes", type=Path, help="file (or its folder) with the attribute names")
    p.add_argument("--data-root", type=Path, default=Path("data"), help="where the data sets are (data)")
    p.add_argument("--out", type=Path, help="(ROOT/<data set>/class_text_<model>_<data set>.safetensors)")
    a = p.parse_args(argv)
    # what --help does not need
    from core.datasets.class_text import embed, prompts, write_class_text
    from core.datasets.names import read_attribute_names
    from core.datasets.paths import class_text_file
    from core.datasets.xlsa17 import read_metadata
    from core.features.backbones import file_form
    from core.features.clip import load_clip
    from core.features.trunks import OPEN_CLIP

    if not a.model.startswith(OPEN_CLIP):
        raise UserError(
            f"--model {a.model}: choose {OPEN_CLIP}MODEL/PRETRAINED, for instance {OPEN_CLIP}ViT-B-16/openai"
        )
    dataset = DATASETS[DATASETS[a.dataset].source]
    metadata = read_metadata(a.data_root, dataset)
    texts = prompts(
        dataset.source, metadata.class_names, metadata.att, read_attribute_names(dataset, a.data_root, a.attributes)
    )
    clip = load_clip(a.model, a.weights)
    record: dict[str, object] = {
        "model": a.model, "weights": clip.weights, "weights_sha256": clip.sha256, "prompts": texts,
    }  # fmt: skip
    out = a.out or class_text_file(a.data_root, dataset, file_form(a.model))
    write_class_text(out, embed(texts, clip.encode), metadata.class_names, record)
    _log.info("wrote %s: %d classes, %d prompts, the first: %s", out, len(texts), sum(map(len, texts)), texts[0][0])
    return 0
