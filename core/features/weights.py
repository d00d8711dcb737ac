"""Weights files: read without running what is in them, and fitted to a network whose head may be another.

Understood are state dicts and training checkpoints that hold one, under the names that training scripts use, with or
without the prefixes of DataParallel, torch.compile, EMA or a wrapping module. Those of a fine-tuned backbone say which
images they were fine-tuned on, and so do features made with them.
"""

import argparse
import base64
import contextlib
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from core.files.errors import UserError, first_line
from core.files.kinds import missing, unreadable

SUFFIXES = (".safetensors", ".pth", ".pt", ".tar", ".ckpt", ".bin")
# where training scripts keep the state dict; an averaged one is what they evaluate, so it comes first
_CONTAINERS: tuple[str, ...] = ("model_ema", "state_dict_ema", "ema_state_dict", "ema", "teacher")
_CONTAINERS += ("state_dict", "model_state_dict", "model")
# what follows the trunk in torchvision, timm and the training scripts of others
HEADS: tuple[str, ...] = ("fc", "head", "heads", "head_dist", "classifier", "AuxLogits", "aux1", "aux2")
HEADS += ("last_linear", "fc_norm", "attn_pool")
KEY = "finetuned"  # entry in the header of a fine-tuned file; one alone, since the format orders several at random
_NOT_LEARNED = ("num_batches_tracked", "n_averaged", "position_ids", "attn_mask")  # some versions store them, some not
# as torchvision's own loader does: the files of densenet are older than the rule against dots in module names
_DENSE_LAYER = re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\.(?:weight|bias|running_mean|running_var))$")


def is_weights_file(weights: str) -> bool:
    """Whether a --weights value names a file rather than weights that a library knows."""
    return weights.lower().endswith(SUFFIXES)


def _read_state(path: Path) -> dict[str, Tensor]:
    """Names to tensors of a .safetensors file, a state dict or a training checkpoint; nothing in it is run."""
    if not path.is_file():
        raise UserError(missing(path, "weights file"))
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals([argparse.Namespace]):
            content: Any = torch.load(path, map_location="cpu", weights_only=True)
        content = next((content[key] for key in _CONTAINERS if isinstance(content.get(key), Mapping)), content)
        return {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    except Exception as error:  # PyTorch's own text advises to let the file run what it likes
        raise unreadable(path, "weights file", "torch.save(model.state_dict(), FILE) makes one") from error


def load_weights(network: nn.Module, weights: str | None) -> None:
    """Fit a weights file to a network; heads, the file's and the network's, are left alone. Other names fit nothing."""
    if weights is None or not is_weights_file(weights):
        return
    own, read = _trunk(network.state_dict()), _read_state(Path(weights))
    first = next(iter(own))  # where the file has it under a longer name, its other names begin as this one does
    prefix = min((k.removesuffix(first) for k in read if f".{k}".endswith(f".{first}")), key=len, default="")
    named = {_DENSE_LAYER.sub(r"\1\2", k.removeprefix(prefix)): v for k, v in read.items() if k.startswith(prefix)}
    state = _trunk(named)
    wrong = [k for k in sorted({*own, *state}) if k not in own or k not in state or own[k].shape != state[k].shape]
    if wrong:
        said = f"{len(wrong)} tensors are missing, unknown or of another shape ({', '.join(wrong[:3])})"
        raise UserError(f"{weights} does not fit the network, {said}. Is it of another --backbone?")
    network.load_state_dict(state, strict=False)


def _trunk(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k: v for k, v in state.items() if k.split(".")[0] not in HEADS and not k.endswith(_NOT_LEARNED)}


@contextlib.contextmanager
def from_hub(backbone: str, file: str) -> Iterator[None]:
    """Around what fetches weights, where nearly anything may be raised; ``file`` is what can be fetched by hand."""
    try:
        yield
    except Exception as error:
        raise UserError(
            f"{backbone} could not be made with its weights ({first_line(error)}). Offline? Download its {file} "
            f"elsewhere and name it: --weights {Path(file).name}"
        ) from error


def fetch_cached(url: str) -> Path:
    """The file of torch's cache that a weights address stands for; if it is not there, it is downloaded and checked."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]
    with from_hub(path.stem, url):
        torch.hub.load_state_dict_from_url(url, map_location="cpu", check_hash=True, weights_only=True)
    return path


def state_sha256(network: nn.Module) -> str:
    """SHA-256 of a network's names and numbers."""
    digest = hashlib.sha256()
    for key, value in network.state_dict().items():
        digest.update(key.encode())
        digest.update(value.contiguous().numpy().tobytes())
    return digest.hexdigest()


def finetuned_record(weights: str | Path | None) -> dict[str, str]:
    """What a file that :func:`finetune` wrote says of itself; empty of any other weights."""
    if weights is None or Path(weights).suffix != ".safetensors":
        return {}
    with safe_open(weights, framework="pt") as file:
        record: dict[str, str] = json.loads((file.metadata() or {}).get(KEY, "{}"))
    return record


def pack_rows(rows: np.ndarray, count: int) -> str:
    """A set of rows of ``count`` as text: a bit a row, base64 (CUB's 11788 rows take 2 kB)."""
    bits = np.zeros(count, dtype=bool)
    bits[rows] = True
    return base64.b64encode(np.packbits(bits).tobytes()).decode()


def unpack_rows(text: str) -> np.ndarray:
    return np.flatnonzero(np.unpackbits(np.frombuffer(base64.b64decode(text, validate=True), dtype=np.uint8)))


def refuse_finetuned(
    provenance: Mapping[str, Any], dataset: str, labels: np.ndarray, seen_rows: np.ndarray, unseen_rows: np.ndarray
) -> None:
    """Raise where a fine-tuned backbone's features would be measured on what it was fine-tuned on.

    Measured is on seen_rows and unseen_rows of ``dataset``, a source, with labels (N,); rows mean nothing in another.
    """
    if provenance.get("finetuned") != "true" or provenance.get("finetuned_dataset") != dataset:
        return
    used = unpack_rows(str(provenance["finetuned_rows"]))
    used = used[used < len(labels)]
    classes = np.intersect1d(labels[used], labels[unseen_rows])
    images = np.intersect1d(used, seen_rows)
    if len(classes) or len(images):
        what = f"{len(classes)} classes taken for unseen" if len(classes) else f"{len(images)} images measured on"
        raise UserError(
            f"the features' backbone ({provenance.get('finetuned_fold')}) was fine-tuned on {what} here; fine-tune it "
            f"on this fold: python finetune.py {dataset} --split <seed>; or choose nothing (--select last)"
        )
