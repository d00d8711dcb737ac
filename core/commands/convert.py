"""Rewrite a feature file from elsewhere to the layout that is read quickly.

    python -m core.commands.convert their.hdf5 data/CUB/feature_map_vit_CUB.hdf5 --layout tokens
    python -m core.commands.convert dazle.hdf5 data/CUB/feature_map_ResNet_101_CUB.hdf5 --layout ndhw  # gzip

Interrupted? The same command continues.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from core.commands.parser import Parser
from core.datasets.stored import check_maps, read_content
from core.features.settings import STORES
from core.features.writer import FeatureFileMetadata, Writer
from core.files.atomic import sha256_file
from core.files.errors import UserError, run_cli
from core.files.hdf5 import names, open_hdf5, plain
from core.files.kinds import unreadable
from core.files.progress import Progress

LAYOUTS = {  # what the axes of feature_map are
    "ndhw": "(N,D,h,w), DAZLE's",
    "nhwc": "(N,h,w,D), channels last",
    "nrd": "(N,R,D), regions then channels",
    "tokens": "(N,T,D) of a vision transformer: class and register tokens, then the patches",
}
_BLOCK = 256 << 20  # bytes of features in memory, but a whole chunk, which is decompressed whole
_log = logging.getLogger(__name__)


def to_ndhw(maps: np.ndarray, layout: str) -> np.ndarray:
    """Features (n,...) of that layout as (n,D,h,w)."""
    if maps.ndim != len(LAYOUTS[layout].split(")")[0].split(",")):
        raise UserError(f"feature_map has {maps.ndim} axes, --layout {layout} is {LAYOUTS[layout]}")
    if layout in ("nrd", "tokens"):
        # the patches are the largest square that leaves a token in front
        regions = math.isqrt(maps.shape[1] - 1) ** 2 if layout == "tokens" else maps.shape[1]
        side = math.isqrt(regions)
        grid = (side, side) if side**2 == regions else (1, regions)
        maps = maps[:, -regions:].reshape(len(maps), *grid, maps.shape[2])
    return maps if layout == "ndhw" else maps.transpose(0, 3, 1, 2)


def convert(source: Path, target: Path, *, layout: str, store: str = "float16") -> Path:
    """Rewrite a feature file, or go on with a run that was interrupted; layout is a key of LAYOUTS."""
    with open_hdf5(source) as file:
        metadata = replace(read_content(file, source), class_names=names(file, "allclasses_names") or [])
        told = {"pretraining_saw_unseen": "unknown"} | {k: plain(v) for k, v in file.attrs.items()}
        provenance = {k: v for k, v in told.items() if isinstance(v, str | int) and k not in ("complete", "sha256")}
        provenance["converted_from"] = f"{source.name} sha256 {sha256_file(source)}, layout {layout}"
        w2v, text = (file[key][()] if key in file else None for key in ("w2v_att", "class_text"))
        content, maps = FeatureFileMetadata(metadata, provenance, w2v, text), file["feature_map"]
        shape = (len(maps), *to_ndhw(maps[:1], layout).shape[1:])
        check_maps(shape, maps.dtype, source)
        chunk = maps.chunks[0] if maps.chunks else 1
        block = chunk * max(1, _BLOCK // (chunk * maps[:1].nbytes))
        with Writer(target, content, shape[1:], store) as writer, Progress(len(maps), target.name, "image") as bar:
            for start in range(0, len(maps), block):
                rows = np.arange(start, min(start + block, len(maps)))
                if not writer.done[rows].all():
                    try:
                        values = maps[start : start + block]
                    except Exception as error:  # filters raise nearly anything
                        raise unreadable(source, f"feature file from row {start} on", error) from error
                    writer.write(rows, to_ndhw(values, layout))
                bar.update(len(rows))
            writer.finish()
    return target


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("source", type=Path, metavar="IN", help="feature file to read; it is left as it is")
    add("target", type=Path, metavar="OUT", help="feature file to write")
    add("--layout", choices=LAYOUTS, required=True, help="; ".join(f"{name}: {what}" for name, what in LAYOUTS.items()))
    add("--store", choices=STORES, default="float16", help="type in the new file (%(default)s)")
    _log.info("features in %s", convert(**vars(parser.parse_args(argv))))
    return 0


if __name__ == "__main__":
    raise SystemExit(run_cli(main))
