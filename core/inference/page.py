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
import re
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
from core.files.atomic import fsync, fsync_folder
from core.files.errors import UserError
from core.inference.explain import Explanation, describer_of, explain
from core.inference.names import shown_classes
from core.inference.trained import Trained
from core.preparation import Describer

log = logging.getLogger(__name__)

IMAGES = 200  # at most, on a page
SIZE = 10_000_000  # bytes, at most, of a page
ASSETS = ("index.html", "page.css", "model.js", "panels.js", "page.js")
_MARK = "// a page of core/inference/page.py\n"  # how data.js begins: what may be replaced
_SIDE, _QUALITY = 256, 70  # of the photographs
_BATCH = 16
_GRAM = 1000  # seen classes; above it the products of their means would be most of the page
_NEVER = 1e30  # stands for no number
# words of attribute names for the key points of CUB, whose own names are the first of each group
_ALSO = {
    "beak": {"bill"},
    "belly": {"underparts"},
    "breast": {"underparts"},
    "back": {"upperparts"},
    "eye": {"eyes"},
    "leg": {"legs"},
    "wing": {"wings"},
}


@dataclass(frozen=True, kw_only=True)
class Item:
    """One image of a page."""

    picture: Path | np.ndarray  # a file, or (H,W,3) uint8 as the backbone saw it
    x: Tensor  # (R,D) regions of unit length
    truth: int | None = None  # class number
    points: Sequence[tuple[str, float, float]] = ()  # name, x and y as shares of the picture as the backbone saw it
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
        items: the first :data:`IMAGES` are shown, and the page says so.
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
    shown = list(items[:IMAGES])
    if len(items) > IMAGES:
        log.warning("the page shows the first %d of %d images", IMAGES, len(items))
    temporary, old = (out.with_name(f".{out.name}.{os.getpid()}.{kind}") for kind in ("tmp", "old"))
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        (temporary / "images").mkdir(parents=True)
        _write(trained, shown, temporary, grid, transform, title, len(items))
        for file in sorted(temporary.rglob("*.*")):
            if file.is_file():
                with open(file, "rb") as handle:
                    fsync(handle.fileno())
        if out.exists():
            os.rename(out, old)
        os.rename(temporary, out)
        fsync_folder(out.parent)
    except OSError as error:
        if old.exists() and not out.exists():
            os.rename(old, out)
        raise UserError(
            f"cannot write the page to {out}: {error.strerror or error}. Choose another folder; nothing was changed"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
    return out / "index.html"


def check_replaceable(out: Path) -> None:
    """Refuse a path that holds something else than a page of ours; an empty folder is fine.

    Raises:
        UserError: what is there.
    """
    out = Path(out)
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise UserError(f"{out} is there and is no folder, so no page is written to it. Choose another name")
    if not out.is_dir() or not any(out.iterdir()):
        return
    known = {*ASSETS, "data.js", "images"}
    strangers = sorted(p.name for p in out.iterdir() if p.name not in known)
    try:
        with open(out / "data.js", encoding="ascii") as handle:
            ours = handle.readline() == _MARK and not strangers
    except (OSError, UnicodeDecodeError):
        ours = False
    if not ours:
        raise UserError(
            f"{out} holds something else than a page of ours"
            + (f" ({strangers[0]})" if strangers else "")
            + ", which would be lost. Choose a new folder, or delete this one yourself"
        )


def _write(
    trained: Trained,
    items: list[Item],
    folder: Path,
    grid: tuple[int, int] | None,
    transform: Transform | None,
    title: str,
    given: int,
) -> None:
    for name in ASSETS:
        (folder / name).write_bytes((resources.files("core.inference") / "page" / name).read_bytes())
    data = _classes(trained, title, given)
    parts = sorted({name for item in items for name, _, _ in item.points})
    data["parts"] = [text(p) for p in parts]
    data["part_of"] = [parts_of(a, parts) for a in trained.attributes]
    pictures, used = [], 0
    for number, item in enumerate(items):
        pictures.append(_jpeg(item.picture, transform))
        (folder / f"images/{number:04d}.jpg").write_bytes(pictures[-1])
        used += len(pictures[-1]) * 7 // 3  # once as it is, once in base64
    explained = _explained(trained, items)
    data["images"] = [_image(item, found, i) for item, (found, i) in zip(items, explained, strict=True)]
    maps = [None if found.theta is None else found.theta[i].float().cpu().numpy() for found, i in explained]
    R = items[0].x.shape[0]
    h, w = grid or (round(R**0.5),) * 2
    shape = (h, w) if h * w == R and maps[0] is not None else None
    largest = max((float(m.max()) for m in maps if m is not None), default=0.0)
    # an attention that looks everywhere alike must not look like one that found something: it stays in the middle
    data |= {"grid": shape, "largest": max(largest, 2 / R), "kept": None}
    left = SIZE - 200_000 - used - len(json.dumps(data))
    kept = _kept(left, len(items), trained, shape)
    data["kept"] = kept if kept < len(trained.attributes) else None
    if shape is not None and kept < len(trained.attributes):
        log.info("the page has the maps of %d of %d attributes an image", kept, len(trained.attributes))
    (folder / "data.js").write_text(_MARK + f"window.DATA = {script_json(data)};\n", "ascii")
    for number, (picture, theta) in enumerate(zip(pictures, maps, strict=True)):
        content: dict[str, Any] = {"picture": base64.b64encode(picture).decode(), "which": [], "maps": ""}
        if theta is not None and shape is not None and kept:
            found, i = explained[number]
            which = _most_telling(found, i)[:kept]
            steps = np.rint(theta.T[which] * (255 / data["largest"])).astype(np.uint8)  # (kept,R)
            content |= {"which": which.tolist(), "maps": base64.b64encode(steps.tobytes()).decode()}
        (folder / f"images/{number:04d}.js").write_text(f"pageImage({number}, {script_json(content)});\n", "ascii")
    size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
    if size > SIZE:
        log.warning("the page has %.1f MB; with fewer images it would be below %d MB", size / 1e6, SIZE // 10**6)


def _classes(trained: Trained, title: str, given: int) -> dict[str, Any]:
    """What is the same for all images."""
    space = trained.space
    describer = describer_of(trained)
    if describer is not None and len(space.seen) > _GRAM and describer.gram is not None:
        log.info("with %d seen classes the page takes no scores apart: their products would be too much", _GRAM)
        describer = None
    att = space.att.double().cpu()
    largest = float(att.abs().max()) or 1.0
    return {
        "title": text(title or f"{trained.config.get('dataset', '')}, {trained.config.get('method', '')}"),
        "method": text(str(trained.config.get("method", ""))),
        "given": given,
        "classes": [text(c) for c in trained.classes],
        "shown": [text(c) for c in shown_classes(trained.classes)],  # for people; tables keep the names of the data
        "attributes": [text(a) for a in trained.attributes],
        "seen": space.seen.tolist(),
        "unseen": space.unseen.tolist(),
        "gamma": trained.gamma,
        "att": floats(att * (100 / largest)),  # the largest is 100, for people
        "describer": None if describer is None else _describer(describer),
    }


def _describer(d: Describer) -> dict[str, Any]:
    return {
        "root": d.root,
        "centre": floats(d.centre),
        "gram": None if d.gram is None else floats(d.gram),
        "landmarks": None if d.mixing is None else floats(d.mixing.landmarks),
        "A": None if d.mixing is None else floats(d.mixing.A),
        "width": None if d.mixing is None else d.mixing.width,
        "hubness": d.hubness,
    }


def _explained(trained: Trained, items: list[Item]) -> list[tuple[Explanation, int]]:
    """Of each item the explanation of its batch, and its place there."""
    device = next(iter(trained.model.state_dict().values())).device
    found = []
    for start in range(0, len(items), _BATCH):
        x = torch.stack([item.x for item in items[start : start + _BATCH]]).to(device).float()
        explanation = explain(trained, x)
        found += [(explanation, i) for i in range(len(x))]
    return found


def _image(item: Item, found: Explanation, i: int) -> dict[str, Any]:
    name = item.name or (item.picture.name if isinstance(item.picture, Path) else "")
    peaks = None if found.theta is None else found.theta[i].argmax(dim=0).tolist()  # (K,) cell looked at most
    return {
        "name": text(name),
        "truth": item.truth,
        "scores": floats(found.scores[i].clamp(-_NEVER, _NEVER)),
        "g": None if found.g is None else floats(found.g[i]),
        "h": None if found.h is None else floats(found.h[i]),
        "own": None if found.own is None else floats(found.own[i]),
        "peaks": peaks if item.points else None,
        "points": [[text(part), round(x, 4), round(y, 4)] for part, x, y in item.points],
    }


def _most_telling(found: Explanation, i: int) -> np.ndarray:
    """Attributes (K,), those first whose contribution to any class may be largest; else those looked for hardest."""
    assert found.theta is not None
    value = found.theta[i].amax(dim=0) if found.g is None or found.z is None else (
        found.g[i].abs() * found.z.abs().amax(dim=0))  # fmt: skip
    return np.argsort(-value.cpu().numpy(), kind="stable")


def _kept(left: int, images: int, trained: Trained, shape: tuple[int, int] | None) -> int:
    """How many attributes' maps an image may have."""
    if shape is None:
        return 0
    room = left / images / (4 / 3 * shape[0] * shape[1] + 5)
    return int(max(0, min(len(trained.attributes), room)))


def parts_of(attribute: str, parts: Sequence[str]) -> list[int]:
    """Which key points show an attribute: those one of whose words, or what it is also called, is in its name."""
    words = set(re.findall(r"[a-z]+", attribute.lower().partition("::")[0].replace("_", " ")))
    found = []
    for number, part in enumerate(parts):
        own = set(part.lower().split()) - {"left", "right"}
        if words & (own | {other for word in own for other in _ALSO.get(word, set())}):
            found.append(number)
    return found


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
