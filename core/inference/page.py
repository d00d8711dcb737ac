"""A static folder that shows why each photograph got its name: opens by file://, needs no server and no network.

    index.html page.css model.js panels.js described.js page.js     as they lie in core/inference/page/
    data.js            DATA = {...}: classes, attributes, and of each image its scores, what it shows of each attribute
                       and the corrections; browsers refuse to fetch JSON from file://
    images/0000.jpg    the whole photograph, at most 320 pixels wide and high
    images/0000.js     the evidence of its places, and the photograph again for saving; read when the image is opened
Numbers are float32 in base64, so bars add up to the score shown; evidence of places has 127 steps either way, of each
attribute's own size, so that its cells add up to its bar too.
Names are data: JSON with every letter outside ASCII and < > & escaped here, and put into the page as text there.

B images · R regions · D channels · K attributes · C classes (S seen)
"""

import base64
import io
import json
import os
import shutil
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from core.features.images import Transform, open_image
from core.files.errors import UserError
from core.inference.explain import explain, why_no_maps
from core.inference.names import shown_classes, shown_reason
from core.inference.sure import NONE_RATE, rival_of
from core.inference.trained import Trained

IMAGES = 200  # at most, on a page
ASSETS = ("index.html", "page.css", "model.js", "panels.js", "described.js", "page.js")
_MARK = b"// a page of core/inference/page.py\n"  # how data.js begins: what may be replaced
_SIDE, _QUALITY = 320, 70  # of the photographs
_BATCH = 16
_STEPS = 127  # of an attribute's evidence, either way


@dataclass(frozen=True, kw_only=True)
class Item:
    """One image of a page."""

    picture: Path | np.ndarray  # a file, or (H,W,3) uint8
    x: Tensor  # (R,D) regions of unit length
    truth: int | None = None  # class number
    name: str = ""  # shown; empty: the file's name


def write_page(
    trained: Trained, items: Sequence[Item], out: Path, *, grid: tuple[int, int] | None = None,
    transform: Transform | None = None, title: str = "", total: int = 0, none_rate: float = NONE_RATE,
) -> Path:  # fmt: skip
    """Write the page of a trained model's decisions on some images, and return its index.html.

    Args:
        items: at most some :data:`IMAGES`, so that a browser takes them.
        out: the folder; a page that is there already is replaced, anything else is refused.
        grid: rows and columns of the R regions; None: a square, and no maps where they form none.
        total: how many images there were, where ``items`` are the first of them. none_rate: as of a Predictor.
        transform: of the backbone, so that what it saw of a file is drawn in; None: the middle square of the picture.
    """
    out = Path(out)
    check_replaceable(out)
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        (temporary / "images").mkdir(parents=True)
        for name in ASSETS:
            (temporary / name).write_bytes((resources.files("core.inference") / "page" / name).read_bytes())
        title = text(title or f"{trained.config.get('dataset', '')}, {trained.config.get('method', '')}")
        said = {"title": title, "total": max(total, len(items)), "none_rate": none_rate}
        _write(temporary, trained, items, grid, transform, said)
        shutil.rmtree(out, ignore_errors=True)
        os.rename(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return out / "index.html"


def check_replaceable(out: Path) -> None:
    """Refuse a path that holds something else than a page of ours, which would be lost; an empty folder is fine."""
    there = {path.name for path in out.iterdir()} if out.is_dir() else {*[out.name] * out.exists()}
    data = out / "data.js"
    ours = there <= {*ASSETS, "data.js", "images"} and data.is_file() and data.read_bytes().startswith(_MARK)
    if (there and not ours) or out.name in ("", ".."):
        raise UserError(f"{out} holds something else than a page, which would be lost. Choose a new folder")


def _write(
    folder: Path, trained: Trained, items: Sequence[Item], grid: tuple[int, int] | None, transform: Transform | None,
    said: dict[str, Any],
) -> None:  # fmt: skip
    R = len(items[0].x)
    h, w = grid or (round(R**0.5),) * 2
    images: list[dict[str, Any]] = []
    for start in range(0, len(items), _BATCH):
        batch = items[start : start + _BATCH]
        found = explain(trained, torch.stack([item.x for item in batch]).to(trained.device).float())
        rival = rival_of(trained, found)
        why = why_no_maps(trained, found) or ("" if h * w == R else f"{R} regions form no grid, so there is no map.")
        for i, item in enumerate(batch):
            stem, (picture, crop) = f"images/{len(images):04d}", _jpeg(item.picture, transform)
            (folder / f"{stem}.jpg").write_bytes(picture)
            content: dict[str, Any] = {"picture": base64.b64encode(picture).decode()}
            if found.ev is not None and not why:
                ev = found.ev[i].T.float().cpu()  # (K,R)
                step = [float(f"{largest / _STEPS:.4g}") or 1.0 for largest in ev.abs().amax(dim=1).tolist()]  # (K,)
                cells = (ev / torch.tensor(step).unsqueeze(1)).round().to(torch.int8).numpy()
                content |= {"step": step, "ev": base64.b64encode(cells.tobytes()).decode()}
            (folder / f"{stem}.js").write_text(f"pageImage({len(images)}, {script_json(content)});\n", "ascii")
            images.append({
                "name": text(item.name or (item.picture.name if isinstance(item.picture, Path) else "")),
                "truth": item.truth,
                "crop": crop,
                "scores": floats(found.scores[i]),
                "rival": None if rival is None else float(rival[i]),
                "g": None if found.g is None else floats(found.g[i]),
                "corrections": [floats(values[i]) for values in found.corrections.values()],
            })  # fmt: skip
    data = said | {
        "classes": [text(c) for c in trained.classes],
        "shown": [text(c) for c in shown_classes(trained.classes)],  # for people; tables keep the names of the data
        "attributes": [text(a) for a in trained.attributes],
        "more": [text(shown_reason(a, 1)) for a in trained.attributes],
        "less": [text(shown_reason(a, -1)) for a in trained.attributes],
        "seen": trained.space.seen.tolist(),
        "gamma": trained.gamma,
        "shares": trained.gamma_shares.tolist(),  # of γ, by class
        "certainty": trained.certainty or None,
        "encoder": _encoder(trained),
        "y": None if found.y is None else floats(found.y),
        "corrections": list(found.corrections),
        "grid": None if why else (h, w),
        "no_maps": why,
        "images": images,
    }
    (folder / "data.js").write_bytes(_MARK + f"window.DATA = {script_json(data)};\n".encode("ascii"))


def _encoder(trained: Trained) -> dict[str, Any] | None:
    """What scores a class described on the page; W and the seen means by their products, which are smaller."""
    encoder = trained.encoder
    if encoder is None:
        return None
    parts: dict[str, Tensor | None] = {"att": trained.space.att, "centre": encoder.centre, "gram": None, "near": None}
    if encoder.W is not None and encoder.means is not None:
        parts |= {"gram": encoder.W @ encoder.W.T, "near": encoder.W @ encoder.means.T}
    found = {name: None if values is None else floats(values) for name, values in parts.items()}
    questions = None if encoder.questions is None or not encoder.root else encoder.questions.tolist()
    return found | {"root": encoder.root, "hubness": encoder.hubness, "questions": questions}


def _jpeg(picture: Path | np.ndarray, transform: Transform | None) -> tuple[bytes, list[float]]:
    """The whole picture, small, coded anew so that nothing of the file itself reaches the page; and left, top, width
    and height, as shares of it, of the square that the backbone saw.
    """
    try:
        image = open_image(picture, _SIDE)
    except ValueError as error:
        raise UserError(f"{picture} cannot be shown on the page: {error}") from error
    share = 1.0 if transform is None else transform.crop / transform.resize
    width, height = (share * min(image.size) / side for side in image.size)
    image.thumbnail((_SIDE, _SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_QUALITY, optimize=True)
    return buffer.getvalue(), [(1 - width) / 2, (1 - height) / 2, width, height]


def floats(values: Tensor) -> str:
    """Numbers as little-endian float32 in base64, row by row."""
    return base64.b64encode(values.detach().cpu().numpy().astype("<f4").tobytes()).decode()


def text(name: str) -> str:
    """A name without what no file can hold: control characters and halves of letters become a replacement sign."""
    return "".join("\ufffd" if unicodedata.category(c) in ("Cc", "Cs") else c for c in name)


def script_json(value: Any) -> str:
    """JSON in ASCII that may stand in a script, wherever that stands: no tag can begin or end in it."""
    plain = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return plain.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
