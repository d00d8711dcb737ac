"""The backbone that made a run's regions, made again from what the run's checkpoint records of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from core.features.backbones import Backbone, build_backbone
from core.features.settings import DTYPES, STORES, ExtractionConfig, recorded_config
from core.features.weights import is_weights_file, state_sha256
from core.files.atomic import sha256_file
from core.files.errors import UserError

_SAME = ("backbone", "layer", "transform", "input_size", "pool", "flip")  # of the record, beside the weights
_MISSING = {"pool": 1, "flip": "no"}  # where a record is of before there was such a choice


def recorded_settings(record: Mapping[str, Any], run: Path, weights: Path | str | None) -> ExtractionConfig:
    """How the regions of ``run`` were extracted; ``weights`` is None where the library has those of that name.

    Args: weights: a file that a user names.

    Raises:
        UserError: the record does not say, or says what this version does not know.
    """
    name = str(record.get("backbone", "unknown"))
    if name == "unknown":
        raise UserError(
            f"the features that {run} was trained on do not say which backbone made them, so no photograph can be "
            "turned into such features; extract them anew (extract_feature/), train again, and predict from that"
        )
    config = recorded_config({k: v for k, v in record.items() if k != "batch_size"})
    if config.backbone != name or record.get("dtype", "float32") not in DTYPES or record["store"] not in STORES:
        raise UserError(f"the checkpoint in {run} records a backbone {name!r} or features of a type that is unknown")
    known = config.weights or ""
    if is_weights_file(known) or name.endswith(f"/{known}"):  # open_clip's weights are part of the backbone's name
        known = ""
    given = str(weights) if weights is not None else known or None
    return replace(config, weights=given, pretraining_saw_unseen=None)


def rebuild(record: Mapping[str, Any], config: ExtractionConfig, shape: tuple[int, int]) -> Backbone:
    """The backbone of a record, which gives regions of ``shape`` (R,D).

    Raises:
        UserError: its weights are not there or are others, or it is not made here as it was.
    """
    recorded, digest, given = str(record.get("weights", "")), str(record.get("weights_sha256", "")), config.weights
    if is_weights_file(recorded):
        if given is None:
            raise UserError(
                f"this run's regions come from {record['backbone']} with the weights file {recorded} (sha256 "
                f"{digest}), which is not here; name it with --weights FILE"
            )
        if not Path(given).is_file():
            raise UserError(f"no weights file at {given}")
        if (found := sha256_file(given)) != digest:
            raise UserError(
                f"{given} is not the weights file of this run: its sha256 is {found}, that of {recorded}, which made "
                f"the regions it was trained on, is {digest}. Name that file with --weights"
            )
    network = build_backbone(config.backbone, given, input_size=config.input_size, pool=config.pool)
    if not is_weights_file(recorded) and digest not in (network.sha256, state_sha256(network.network)):
        raise UserError(
            f"the weights of {config.backbone} are not those of this run: their sha256 is {network.sha256}, recorded "
            f"is {digest} ({recorded}); name the right file with --weights"
        )
    made = network.record()
    for key in _SAME:
        if str(made[key]) != str(record.get(key, _MISSING.get(key))):
            raise UserError(
                f"{config.backbone} has the {key} {made[key]} here, and had {record.get(key)} when this run's features "
                "were made; install the versions it was made with, or extract and train again"
            )
    (D, h, w), (R, D_run) = network.shape, shape
    if (D, h * w) != (D_run, R):
        raise UserError(f"{h}x{w} regions of {D} channels here, the run was trained on {R} of {D_run}")
    return network
