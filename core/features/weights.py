"""Weights files: read without running what is in them, and fitted to a network whose head may be another.

Understood are state dicts and training checkpoints that hold one, under the names that training scripts use, with or
without the prefixes of DataParallel, torch.compile, EMA or a wrapping module.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import mmap
import pickle
import pickletools
import re
import tempfile
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from core.files import sandbox
from core.files.atomic import sha256_file
from core.files.errors import UserError, first_line, is_out_of_memory
from core.files.kinds import missing, unreadable, what_it_is
from core.files.system import utf8_name

SUFFIXES = (".safetensors", ".pth", ".pt", ".tar", ".ckpt", ".bin")
# where training scripts keep the state dict; an averaged one is what they evaluate, so it comes first
_CONTAINERS = (
    "model_ema",
    "state_dict_ema",
    "ema_state_dict",
    "ema",
    "teacher",
    "state_dict",
    "model_state_dict",
    "model",
)
# what follows the trunk in torchvision, timm and the training scripts of others
HEADS = (
    "fc",
    "head",
    "heads",
    "head_dist",
    "classifier",
    "AuxLogits",
    "aux1",
    "aux2",
    "last_linear",
    "fc_norm",
    "attn_pool",
)
_COUNTERS = ("num_batches_tracked", "n_averaged")
_LARGEST = 8 << 30  # bytes of a weights file
_SHARED = 4  # times a file's bytes that its tensors may have: what they share is written once for each
_CHILD_SECONDS, _CHILD_SPARE = 300, 1 << 30  # an intact file of 8 GB takes a minute; bytes besides its tensors
_OLD_PICKLES = 5  # in a file of PyTorch's old format, before the numbers
# What a checkpoint is made of; PyTorch's own list has calls more, which set aside any amount of memory (bytearray).
_PARTS = re.compile(
    r"collections (OrderedDict|Counter|defaultdict)|torch (Size|device|\w+Storage|[a-z]\w*)|torch\._utils _rebuild_\w+"
    r"|torch\.storage \w+|torch\.nn\.parameter Parameter|torch\.serialization _get_layout|argparse Namespace"
)
_IN_CHILD = "core.features.weights:rewrite"
_log = logging.getLogger(__name__)


def is_weights_file(weights: str) -> bool:
    """Whether a --weights value names a file rather than weights that a library knows."""
    return weights.lower().endswith(SUFFIXES)


def load_weights(network: nn.Module, path: Path, known: bool = False) -> None:
    """Fit a weights file to a network. Its head is ignored, and said to be; what the network's head has, it keeps.

    Args:
        known: it is PyTorch's own, from :func:`fetch_cached`.

    Raises:
        UserError: an unreadable file, or another trunk; names the first keys.
    """
    state = read_state(path, known)
    taken = fit_keys(network, state)
    own = network.state_dict()
    trunk = [k for k in own if not _is_head(k) and k.rsplit(".", 1)[-1] not in _COUNTERS]
    missing = [k for k in trunk if k not in taken]
    extra = [k for k in taken if k not in own and not _is_head(k) and k.rsplit(".", 1)[-1] not in _COUNTERS]
    fitting = {k: v for k, v in taken.items() if k in own and (not _is_head(k) or v.shape == own[k].shape)}
    shapes = [
        f"{k} {tuple(v.shape)}, needs {tuple(own[k].shape)}" for k, v in fitting.items() if v.shape != own[k].shape
    ]
    if missing or extra or shapes:
        parts = [
            f"{len(keys)} {what} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"
            for what, keys in (("missing", missing), ("unknown", extra), ("of another shape", shapes))
            if keys
        ]
        raise UserError(f"{path} does not fit the network: {'; '.join(parts)}. Is --backbone the one it was made with?")
    odd = [k for k, v in fitting.items() if not _is_plain(v)]
    if odd:
        what = f"sparse, quantized or complex weights, or none at all, in {', '.join(odd[:3])}"
        raise UserError(f"{path}: {what}; save the network as it was before it was converted")
    # as they will be stored: a float64 may be too large
    bad = [k for k, v in fitting.items() if not torch.isfinite(v.to(own[k].dtype)).all()]
    if bad:
        raise UserError(f"{path}: NaN or infinity in {', '.join(bad[:3])}; take an earlier checkpoint")
    used = {id(v) for v in fitting.values()}
    ignored = [k for k, v in state.items() if id(v) not in used]
    if ignored:
        _log.info(
            "%s: %d entries that the features do not need are ignored (%s%s)",
            path.name, len(ignored), ", ".join(ignored[:4]), ", ..." if len(ignored) > 4 else "",
        )  # fmt: skip
    network.load_state_dict(fitting, strict=False)


def fit_keys(network: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The part of a state dict that has most of the network's keys, without the prefix they have there."""
    own = network.state_dict()
    first = next(k for k in own if not _is_head(k))
    prefixes = {key[: -len(first)] for key in state if key == first or key.endswith("." + first)} or {""}
    names = [k for k in own if not _is_head(k)]
    best = max(sorted(prefixes, key=len), key=lambda p: sum(p + name in state for name in names))
    taken = {k.removeprefix(best): v for k, v in state.items() if k.startswith(best)}
    return {_DENSE_LAYER.sub(r"\1\2", k): v for k, v in taken.items()}


# as torchvision's own loader does: the files of densenet are older than the rule against dots in module names
_DENSE_LAYER = re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\.(?:weight|bias|running_mean|running_var))$")


def _is_head(key: str) -> bool:
    return key.split(".", 1)[0] in HEADS


def _is_plain(value: Tensor) -> bool:
    """Whether it can be copied into a network's parameter; a meta tensor has no numbers."""
    dense = value.layout == torch.strided and not value.is_quantized and not value.is_nested
    return dense and not value.is_complex() and value.device.type == "cpu"


def read_state(path: Path, known: bool = False) -> dict[str, Tensor]:
    """Names to tensors of a .safetensors file, a state dict or a training checkpoint; nothing in it is run.

    PyTorch's formats are read in a child process of bounded memory and time. What is no plain tensor comes as one
    without numbers (of the device meta).

    Args:
        known: the file is PyTorch's own and its hash was compared: it is read here, two seconds faster.

    Raises:
        UserError: no such file, not a weights file, or one that asks for more than numbers.
    """
    if not path.is_file():
        raise UserError(missing(path, "weights file"))
    if (size := path.stat().st_size) > _LARGEST:
        raise UserError(f"{path} has {size} bytes; no weights file of more than {_LARGEST} is read")
    if path.suffix == ".safetensors" or known:
        state, said = _state_of(path)
    else:
        with tempfile.TemporaryDirectory() as folder:
            made = Path(folder) / "plain.safetensors"
            largest = _SHARED * size + _CHILD_SPARE
            limits = {"timeout": _CHILD_SECONDS, "memory": largest + size, "written": largest}
            answer = sandbox.call(_IN_CHILD, str(path), str(made), kind="weights file", **limits)
            plain = load_file(made)
        said, entries = answer["said"], enumerate(answer["entries"])
        state = {name: plain.get(str(i), torch.empty(shape, device="meta")) for i, (name, shape) in entries}
    if said:
        _log.info("%s", said)
    return state


def rewrite(path: str, made: str) -> dict[str, Any]:
    """In the child: a weights file's plain tensors, by number, into a .safetensors file; names and shapes of all."""
    state, said = _state_of(Path(path))
    plain = {str(i): v for i, v in enumerate(state.values()) if _is_plain(v)}
    if sum(v.nbytes for v in plain.values()) > _SHARED * Path(path).stat().st_size + (1 << 20):
        raise UserError(f"{path} is not a readable weights file: some of its tensors repeat the same numbers (expand)")
    copied = {k: v.clone(memory_format=torch.contiguous_format) for k, v in plain.items()}
    try:
        save_file(copied, made)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"no room for a copy of {path} at {made} ({error}): set TMPDIR to a folder with more"
        ) from error
    return {"said": said, "entries": [[name, list(v.shape)] for name, v in state.items()]}


def _state_of(path: Path) -> tuple[dict[str, Tensor], str]:
    """The tensors of a file, and what is to be said of where in it they were."""
    said = ""
    try:
        with utf8_name(path) as name:
            content = load_file(name) if path.suffix == ".safetensors" else _unpickle(path)
    except Exception as error:  # a damaged file raises nearly anything
        if is_out_of_memory(error):
            raise
        raise unreadable(path, "weights file", first_line(error)) from error
    for key in _CONTAINERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            others = [str(k) for k in content if k != key]
            said = f"{path.name}: the weights under {key!r} are taken"
            said += f"; not {', '.join(others[:6])}" if others else ""
            content = content[key]
            break
    if not isinstance(content, Mapping) or not any(isinstance(v, Tensor) for v in content.values()):
        raise UserError(
            f"{path} holds no state dict (names to tensors); torch.save(model.state_dict(), FILE) makes one"
        )
    return {str(k): v for k, v in content.items() if isinstance(v, Tensor)}, said


def _unpickle(path: Path) -> Any:
    _check_pickles(path)
    with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
        warnings.simplefilter("ignore")  # of PyTorch about its own formats, and about damaged ones
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:  # PyTorch's own text advises to let the file run what it likes
            said = re.search(r"WeightsUnpickler error: ([^\n]+?)(\. |\n|$)", str(error))
            raise ValueError(said[1] if said else "not a pickle of names and tensors") from error


def check_hash(path: Path) -> None:
    """Compare a file of torch's cache with the hash in its name, name-<first hex digits of its SHA-256>.pth.

    Raises:
        UserError: it is another file.
    """
    match = re.search(r"-([0-9a-f]{8,})\.\w+$", path.name)
    if match and not sha256_file(path).startswith(match[1]):
        what = what_it_is(path)
        what = f"it is {what}" if what and what != "a PyTorch file" else "its hash is not the one in its name"
        raise UserError(
            f"{path} is not what its name says ({what}). Delete it, and the next run downloads it again: rm {path}"
        )


def fetch_cached(url: str) -> Path:
    """The file of torch's cache that a weights address stands for, downloaded if it is not there, its hash compared.

    Raises:
        UserError: it cannot be downloaded, or is another file than its name says.
    """
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    path = folder / url.rsplit("/", 1)[-1]
    if not path.exists():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            match = re.search(r"-([0-9a-f]{8,})\.", path.name)
            torch.hub.download_url_to_file(url, str(path), match[1] if match else None)
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"the weights {path.name} could not be fetched ({error}). Download {url} elsewhere and put it into "
                f"{folder}, or name it with --weights {path.name}"
            ) from error
    check_hash(path)
    return path


def _check_pickles(path: Path) -> None:
    """Refuse a .pth file that would take much more memory than it has bytes.

    Raises:
        ValueError: its pickle calls something that no state dict needs, or its parts are compressed or overlap.
    """
    with open(path, "rb") as handle:
        if handle.read(4) != b"PK\x03\x04":  # as PyTorch tells its two formats apart
            # a file sets aside as many bytes as it is asked for, a map gives what is there
            with mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
                for _ in range(_OLD_PICKLES):
                    _check_calls(mapped)
            return
        with zipfile.ZipFile(handle) as archive:
            entries = archive.infolist()
            if any(e.compress_type != zipfile.ZIP_STORED for e in entries):
                raise ValueError("compressed, which PyTorch's files are not")
            if sum(e.file_size for e in entries) > path.stat().st_size:
                raise ValueError("parts of it overlap")
            for entry in entries:
                if entry.filename.endswith("data.pkl"):
                    with archive.open(entry) as part:
                        _check_calls(part)


def _check_calls(stream: Any) -> None:
    for operation, argument, _ in pickletools.genops(stream):
        if operation.name in ("GLOBAL", "INST") and not _PARTS.fullmatch(str(argument)):
            raise ValueError(
                f"it asks for {argument}, which is not part of a state dict; not loaded. "
                "torch.save(model.state_dict(), FILE) keeps the numbers alone"
            )


def state_sha256(network: nn.Module) -> str:
    """SHA-256 of a network's names and numbers."""
    digest = hashlib.sha256()
    for key, value in network.state_dict().items():
        digest.update(key.encode())
        digest.update(value.contiguous().numpy().tobytes())
    return digest.hexdigest()
