"""A static folder that shows why each photograph got its name: opens by file://, needs no server and no network.

    index.html page.css model.js panels.js page.js     as they lie in core/inference/page/
    data.js            DATA = {...}: classes, attributes, the arrays that score a class from its description, and of
                       each image its scores and factors; browsers refuse to fetch JSON from file://
    images/0000.jpg    the photograph as the backbone saw it, at most 256 pixels wide and high
    images/0000.js     its attention maps, and the photograph again for saving as PNG; read when the image is opened
Numbers are float32 in base64, so bars add up to the score shown; maps have 256 steps from 0 to the largest share.
Names are data: JSON with every letter outside ASCII and < > & escaped here, and put into the page as text there.

B images · R regions · D channels · K attributes · C classes (S seen)
"""

from __future__ import annotations

import base64
import io
import json
import logging
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
from PIL import Image
from torch import Tensor

from core.features.images import Transform, load_image
from core.files.atomic import fsync_folder
from core.files.errors import UserError
from core.inference.explain import Explainer, Explanation
from core.inference.names import shown_classes
from core.inference.trained import Trained
from core.preparation import ClassEncoder

log = logging.getLogger(__name__)

IMAGES = 200  # at most, on a page
ASSETS = ("index.html", "page.css", "model.js", "panels.js", "page.js")
_MARK = "// a page of core/inference/page.py\n"  # how data.js begins: what may be replaced
_SIDE, _QUALITY = 256, 70  # of the photographs
_BATCH = 16
_GRAM = 1000  # seen classes; above it the products of their means would be most of the page
_NEVER = 1e30  # stands for no number


@dataclass(frozen=True, kw_only=True)
class Item:
    """One image of a page."""

    picture: Path | np.ndarray  # a file, or (H,W,3) uint8 as the backbone saw it
    x: Tensor  # (R,D) regions of unit length
    truth: int | None = None  # class number
    name: str = ""  # shown; empty: the file's name


def write_page(
    trained: Trained,
    items: Sequence[Item],
    out: Path,
    *,
    grid: tuple[int, int] | None = None,
    transform: Transform | None = None,
    title: str = "",
) -> Path:
    """Write the page of a trained model's decisions on some images, and return its index.html.

    Args:
        items: the first :data:`IMAGES` are shown.
        out: the folder; a page that is there already is replaced, anything else is refused.
        grid: rows and columns of the R regions; None: a square, and no maps where they form none.
        transform: of the backbone, so that a file is cropped to what it saw; None: the middle square of the picture.

    Raises:
        UserError: no images, ``out`` is not ours to replace or cannot be written, a picture cannot be read.
    """
    out = Path(out)
    if not items:
        raise UserError(f"there is no image to show, so no page is written to {out}")
    check_replaceable(out)
    if len(items) > IMAGES:
        log.warning("the page shows the first %d of %d images", IMAGES, len(items))
    items = items[:IMAGES]
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        (temporary / "images").mkdir(parents=True)
        for name in ASSETS:
            (temporary / name).write_bytes((resources.files("core.inference") / "page" / name).read_bytes())
        _write(temporary, trained, items, grid=grid, transform=transform, title=title)
        shutil.rmtree(out, ignore_errors=True)
        os.rename(temporary, out)
        fsync_folder(out.parent)
    except OSError as error:
        raise UserError(f"cannot write the page to {out}: {error.strerror or error}. Choose another folder") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return out / "index.html"


def check_replaceable(out: Path) -> None:
    """Refuse a path that holds something else than a page of ours; an empty folder is fine.

    Raises:
        UserError: what is there.
    """
    out = Path(out)
    if not out.is_symlink() and not out.exists():
        return
    if out.is_symlink() or not out.is_dir():
        raise UserError(f"{out} is there and is no folder, so no page is written to it. Choose another name")
    there = sorted(path.name for path in out.iterdir())
    strangers = [name for name in there if name not in (*ASSETS, "data.js", "images")]
    data = out / "data.js"
    ours = data.is_file() and data.read_bytes()[: len(_MARK)] == _MARK.encode()
    if there and (strangers or not ours):
        raise UserError(
            f"{out} holds something else than a page ({(strangers or there)[0]}), which would be lost. Choose a new "
            "folder, or delete this one yourself"
        )


def _write(
    folder: Path,
    trained: Trained,
    items: Sequence[Item],
    *,
    grid: tuple[int, int] | None,
    transform: Transform | None,
    title: str,
) -> None:
    explainer, R = Explainer(trained), items[0].x.shape[0]
    images: list[dict[str, Any]] = []
    maps: list[np.ndarray | None] = []  # (R,K) of each image
    for start in range(0, len(items), _BATCH):
        batch = items[start : start + _BATCH]
        found = explainer(torch.stack([item.x for item in batch]).to(trained.device).float())
        images += [_image(item, found, i) for i, item in enumerate(batch)]
        maps += [None if found.theta is None else found.theta[i].float().cpu().numpy() for i in range(len(batch))]
    h, w = grid or (round(R**0.5),) * 2
    shape = (h, w) if h * w == R and maps[0] is not None else None
    # an attention that looks everywhere alike must not look like one that found something: it stays in the middle
    largest = max([2 / R, *(float(theta.max()) for theta in maps if theta is not None)])
    data = _classes(trained, explainer.class_encoder, title) | {"grid": shape, "largest": largest, "images": images}
    (folder / "data.js").write_text(_MARK + f"window.DATA = {script_json(data)};\n", "ascii")
    for number, (item, theta) in enumerate(zip(items, maps, strict=True)):
        picture = _jpeg(item.picture, transform)
        (folder / f"images/{number:04d}.jpg").write_bytes(picture)
        content = {"picture": base64.b64encode(picture).decode(), "maps": ""}
        if theta is not None and shape is not None:
            steps = np.rint(theta.T * (255 / largest)).astype(np.uint8)  # (K,R)
            content["maps"] = base64.b64encode(steps.tobytes()).decode()
        (folder / f"images/{number:04d}.js").write_text(f"pageImage({number}, {script_json(content)});\n", "ascii")


def _classes(trained: Trained, class_encoder: ClassEncoder | None, title: str) -> dict[str, Any]:
    """What is the same for all images."""
    space = trained.space
    if class_encoder is not None and len(space.seen) > _GRAM and class_encoder.gram is not None:
        log.info("with %d seen classes the page takes no scores apart: their products would be too much", _GRAM)
        class_encoder = None
    att = space.att.double().cpu()
    return {
        "title": text(title or f"{trained.config.get('dataset', '')}, {trained.config.get('method', '')}"),
        "method": text(str(trained.config.get("method", ""))),
        "classes": [text(c) for c in trained.classes],
        "shown": [text(c) for c in shown_classes(trained.classes)],  # for people; tables keep the names of the data
        "attributes": [text(a) for a in trained.attributes],
        "seen": space.seen.tolist(),
        "unseen": space.unseen.tolist(),
        "gamma": trained.gamma,
        "att": floats(att * (100 / (float(att.abs().max()) or 1.0))),  # the largest is 100, for people
        "class_encoder": None if class_encoder is None else _class_encoder(class_encoder),
    }


def _class_encoder(d: ClassEncoder) -> dict[str, Any]:
    return {
        "root": d.root,
        "centre": floats(d.centre),
        "gram": None if d.gram is None else floats(d.gram),
        "landmarks": None if d.mixing is None else floats(d.mixing.landmarks),
        "A": None if d.mixing is None else floats(d.mixing.A),
        "width": None if d.mixing is None else d.mixing.width,
        "hubness": d.hubness,
    }


def _image(item: Item, found: Explanation, i: int) -> dict[str, Any]:
    return {
        "name": text(item.name or (item.picture.name if isinstance(item.picture, Path) else "")),
        "truth": item.truth,
        "scores": floats(found.scores[i].clamp(-_NEVER, _NEVER)),
        "g": None if found.g is None else floats(found.g[i]),
        "h": None if found.h is None else floats(found.h[i]),
        "own": None if found.own is None else floats(found.own[i]),
    }


def _jpeg(picture: Path | np.ndarray, transform: Transform | None) -> bytes:
    """The picture as the backbone saw it, small, coded anew: nothing of the file itself reaches the page."""
    if isinstance(picture, np.ndarray):
        image = Image.fromarray(picture)
        image.thumbnail((_SIDE, _SIDE))
    else:
        shorter = _SIDE if transform is None else round(_SIDE * transform.resize / transform.crop)
        try:
            image = Image.fromarray(load_image(picture, _SIDE, shorter))
        except ValueError as error:
            raise UserError(f"{picture} cannot be shown on the page: {error}") from error
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=_QUALITY, optimize=True)
    return buffer.getvalue()


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
