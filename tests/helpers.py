"""What several test modules use: a toy data set, and running the repository's scripts as a user does."""

import contextlib
import io
import logging
import multiprocessing
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from safetensors.torch import save_file

from core.datasets.metadata import Metadata
from core.datasets.registry import DataSet
from core.demo.dataset import TRAITS, draw_signatures
from core.demo.drawing import Signature, draw_creature

ROOT = Path(__file__).resolve().parents[1]

TOY = DataSet(name="TOY", anchor="TOY_images", val_share=0.34)
K, C, V = 11, 7, 5  # attributes, classes, vector size of the fixture ``space``


def cells(values: list[str]) -> np.ndarray:
    """A MATLAB column of texts, as xlsa17's files hold names."""
    out = np.empty((len(values), 1), dtype=object)
    out[:, 0] = values
    return out


def toy_mats(folder: Path, **changes) -> tuple[Path, Path]:
    """xlsa17-format files of 6+3 classes x 10 images; ``changes`` replace variables (None removes)."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(1, 10), 10)
    att = rng.random((8, 9)) * (rng.random((8, 9)) > 0.3) + 0.01
    per_class = np.arange(90).reshape(9, 10) + 1
    content = {
        "labels": labels[:, None],
        "image_files": cells([f"/a/b//TOY_images/c{y}/{i}.jpg" for i, y in enumerate(labels)]),
        "att": att / np.linalg.norm(att, axis=0),
        "original_att": att,
        "allclasses_names": cells([f"class{c}" for c in range(9)]),
        "trainval_loc": per_class[:6, :8].reshape(-1, 1),
        "test_seen_loc": per_class[:6, 8:].reshape(-1, 1),
        "test_unseen_loc": per_class[6:].reshape(-1, 1),
    } | changes
    folder.mkdir(parents=True, exist_ok=True)
    first, second = folder / "res101.mat", folder / "att_splits.mat"
    images = {"labels", "image_files"}
    scipy.io.savemat(first, {k: v for k, v in content.items() if k in images and v is not None})
    scipy.io.savemat(second, {k: v for k, v in content.items() if k not in images and v is not None})
    return first, second


def metadata_of(seen: int, unseen: int, each: int, att: np.ndarray, *, val: int = 1, every: int = 5) -> Metadata:
    """Classes of ``each`` images; of the seen ones, which come first, every so many-th image is a test image.

    Args: val: the last so many seen classes are those of validation; split_sha256 is of nothing.
    """
    labels = np.repeat(np.arange(seen + unseen), each)
    of_seen = np.flatnonzero(labels < seen)
    trainval = np.setdiff1d(of_seen, of_seen[::every])
    return Metadata(
        name="MADE",
        image_files=[f"images/{i}.jpg" for i in range(len(labels))],
        labels=labels,
        class_names=[f"class {c}" for c in range(seen + unseen)],
        att=att.astype(np.float32),
        original_att=np.ones_like(att, dtype=np.float32),
        trainval_loc=trainval,
        test_seen_loc=of_seen[::every],
        test_unseen_loc=np.flatnonzero(labels >= seen),
        train_loc=trainval[labels[trainval] < seen - val],
        val_loc=trainval[labels[trainval] >= seen - val],
        split_sha256="0" * 64,
    )


class ToyFeatures:
    """Region maps (n,D,R) whose class is told by a few regions, so that training has something to learn."""

    def __init__(self, metadata, D=12, R=9):
        rng = np.random.default_rng(1)
        mix = rng.normal(size=(metadata.att.shape[1], D))
        base = rng.normal(size=(len(metadata.labels), D, R)) * 0.5
        spot = rng.integers(0, R, len(metadata.labels))
        base[np.arange(len(base)), :, spot] += 4 * (metadata.att @ mix)[metadata.labels]
        self.maps = base.astype(np.float16)
        self.shape = (R, D)

    def read(self, rows):
        return self.maps[rows]


Ended = tuple[int, str, str]  # exit code, stdout, stderr


def run_here(place: Path, script: str, *arguments: str | Path) -> Ended:
    """Run a script of this repository in this process, in folder ``place``."""
    out, err = io.StringIO(), io.StringIO()
    root, handler = logging.getLogger(), logging.StreamHandler(err)
    level = root.level
    with (
        contextlib.chdir(place),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(sys, "argv", [script, *map(str, arguments)])
        root.addHandler(handler)  # logging is set up already where pytest runs, so the scripts' own set-up is void
        root.setLevel(logging.INFO)
        try:
            runpy.run_path(str(ROOT / script), run_name="__main__")
            code = 0
        except SystemExit as end:
            code = (end.code or 0) if isinstance(end.code, int | None) else 1
        finally:
            root.removeHandler(handler)
            root.setLevel(level)
    return code, out.getvalue(), err.getvalue()


def forked(work: Callable[..., object], *arguments: object) -> multiprocessing.process.BaseProcess:
    """Start ``work`` in a process that can be killed, forked from this one: it need not import anything first."""
    process = multiprocessing.get_context("fork").Process(target=work, args=arguments)
    process.start()
    return process


def refused(result: Ended, *said: str) -> str:
    """Check that a command ended with an error that says all of ``said`` and shows no traceback; the message."""
    code, out, err = result
    assert code == 2, (code, err)
    assert "Traceback" not in out + err
    message = err[err.index("error: ") :]
    for words in said:
        assert words in message, message
    return message


def extraction(name: str) -> str:
    """The script that makes a data set's features."""
    return f"extract_feature/extract_feature_map_ResNet_101_{name}.py"


def word_vectors(name: str) -> str:
    """The script that makes the vectors of a data set's attributes."""
    return f"extract_feature/extract_attribute_w2v_{name}.py"


def weights_file(place: Path, backbone: str) -> Path:
    """Random weights of a torchvision network in a local file."""
    from core.features.backbones import build_backbone

    path = place / f"{backbone}.safetensors"
    save_file(build_backbone(backbone, "random").network.state_dict(), path)
    return path


def drawn_folder(root: Path) -> tuple[list[Signature], str]:
    """A folder of one's own: six described classes, five of them with four drawn photographs.

    Returns the signatures of seven, and a sheet of the seventh alone.
    """
    signatures = draw_signatures(7, 1, np.random.default_rng(0))[0]
    traits = [(t, v) for t in ("crown_color", "wing_color", "belly_color") for v in TRAITS[t]]
    rows = ["class," + ",".join(f"{v} {t}" for t, v in traits)]
    for c, signature in enumerate(signatures):
        rows.append(f"creature {c}," + ",".join(str(int(signature[t] == v)) for t, v in traits))
        for i in range(4 if c < 5 else 0):
            path = root / "images" / f"creature {c}" / f"{i}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            draw_creature(signature, np.random.default_rng([c, i])).save(path)
    (root / "attributes.csv").write_text("\n".join(rows[:-1]) + "\n")
    return signatures, f"{rows[0]}\n{rows[-1]}\n"
