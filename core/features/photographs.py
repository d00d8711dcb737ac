"""A look at every photograph of a folder of one's own: whether it can be read, and a digest that tells it from others.

A file is looked at once: what was found is kept beside the features, until its size or time changes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from core.datasets.own import Photograph, find_images
from core.features.images import NeedsLibrary, open_image
from core.files.atomic import read_json, write_bytes
from core.files.errors import UserError
from core.files.progress import Progress

_SIDE = 32  # pixels, to which a JPEG is shrunk while it is decoded: all of it is read


def look_at(root: Path, features: Path) -> dict[str, Photograph]:
    """Every image file of the folder; what is known is kept in images.json beside ``features``."""
    images, _ = find_images(root)
    files = [file for of_class in images.values() for file in of_class]
    cache, known = features.parent / "images.json", {}
    with contextlib.suppress(UserError):  # none yet, or a damaged one
        known = {file: tuple(found) for file, found in read_json(cache).items()}
    stamps = {file: _stamp(root / "images" / file) for file in files}
    new = [file for file in files if known.get(file, ())[:2] != stamps[file]]

    def look(file: str) -> Photograph:
        chosen: list[str] = []
        try:
            digest = hashlib.sha256(content := (root / "images" / file).read_bytes()).hexdigest()
            open_image(content, _SIDE, chosen, quick=True)
        except NeedsLibrary as error:
            raise UserError(f"{root / 'images' / file} cannot be read: {error}") from error
        except OSError as error:
            return Photograph(file, error.strerror or "it cannot be read")
        except ValueError as error:
            return Photograph(digest, str(error))
        return Photograph(digest, chosen=tuple(chosen))

    if new:
        with ThreadPoolExecutor(os.cpu_count()) as pool, Progress(len(new), "photographs", "image") as bar:
            for file, found in zip(new, pool.map(look, new), strict=True):
                known[file] = (*stamps[file], found.sha256, found.error, found.chosen)
                bar.update(1)
    if new or len(known) > len(files):
        with contextlib.suppress(UserError):  # a folder that may only be read: they are looked at again
            write_bytes(cache, json.dumps({file: known[file] for file in files}, ensure_ascii=False, indent=0).encode())
    return {file: Photograph(known[file][2], known[file][3], tuple(known[file][4])) for file in files}


def _stamp(path: Path) -> tuple[int, int]:
    """What changes when a file is written; zeros where a link leads nowhere."""
    with contextlib.suppress(OSError):
        return path.stat().st_size, path.stat().st_mtime_ns
    return 0, 0
