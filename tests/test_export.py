"""predict.py --export: heads and backbones in ONNX score as ours."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from core.features.images import load_image
from core.inference.explain import explain
from core.inference.export import export
from tests.helpers import refused, run_here
from tests.helpers_predict import SHORT, Made, described


def test_without_onnx_the_sentence_names_the_command(there: Made, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    result = run_here(tmp_path, "predict.py", there.run("eszsl"), "--export", "m.onnx")
    refused(result, "pip install onnx onnxscript onnxruntime")
    assert not list(tmp_path.iterdir())


@pytest.fixture
def runtime():
    pytest.importorskip("onnx", reason="onnx is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    return pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")


def test_a_head_needs_no_weights_of_the_backbone(there: Made, tmp_path: Path, runtime) -> None:
    code, _, err = run_here(tmp_path, "predict.py", there.run("eszsl"), "--export", "head.onnx", "--out", "p.csv")
    assert code == 0 and "maps [" in err, err
    assert [p.name for p in tmp_path.iterdir()] == ["head.onnx"]


@pytest.mark.parametrize("method", SHORT)
def test_every_head_is_exported_and_scores_as_ours(
    there: Made, photo: Path, tmp_path: Path, runtime, method: str
) -> None:
    model = there.load(method)
    splits = method != "vsmr-staged"
    if splits:
        shown = {"added": [photo]} if method == "vsmr" else None
        model.add_classes(described(model, {model.trained.classes[0]: "added"}), shown)
    assert "onnxruntime's scores differ by at most" in export(model, tmp_path / "head.onnx")
    session = runtime.InferenceSession(str(tmp_path / "head.onnx"), providers=["CPUExecutionProvider"])
    facts = session.get_modelmeta().custom_metadata_map
    names = json.loads(facts["classes"])
    assert names == model.trained.classes
    assert (names[-1] == "added") == splits and (json.loads(facts["sides"])[-1] == "unseen" or not splits)
    rows = there.tested()[0][:5]
    maps = there.inputs.features.source.read(rows).astype(np.float32).reshape(5, -1, 3, 3)
    (scores,) = session.run(["scores"], {"maps": maps})
    ours = model.trained.calibrated(explain(model.trained, there.inputs.features.batch(rows)).scores.numpy())
    assert np.abs(scores - ours).max() <= 1e-4 * np.abs(ours).max()


def test_a_photograph_through_the_exported_backbone(there: Made, photo: Path, tmp_path: Path, runtime) -> None:
    model = there.load("eszsl")
    export(model, tmp_path / "m.onnx", with_backbone=True)
    session = runtime.InferenceSession(str(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"])
    names = json.loads(session.get_modelmeta().custom_metadata_map["classes"])
    size = model.network.input_size
    pixels = load_image(photo, size)
    (scores,) = session.run(["scores"], {"pixels": pixels[None]})
    by_name = {c.name: c.score for c in model.predict(photo, top=99).classes}
    ours = np.array([by_name[name] for name in names])
    assert np.abs(scores[0] - ours).max() <= 1e-3 * (ours.max() - ours.min())
