"""predict.py --export: heads and backbones in ONNX score as ours."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from core.inference.explain import explain
from core.inference.export import export
from tests.helpers import ROOT, refused, run_here
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


def test_the_program_of_the_docs_answers_as_we_do_without_torch(
    there: Made, photo: Path, tmp_path: Path, runtime
) -> None:
    model = there.load("eszsl")
    export(model, tmp_path / "whole.onnx", with_backbone=True)
    with Image.open(photo) as image:  # as a telephone that was held upright stores it
        (exif := image.getexif())[ExifTags.Base.Orientation] = 6
        image.save(photo := tmp_path / "turned.png", exif=exif)
    blocks = (ROOT / "docs" / "predict.md").read_text("utf-8").split("\n\n    import json, re, sys\n")[1]
    program = "import json, re, sys\n" + textwrap.dedent(blocks.partition("\n\nThe file is run")[0])
    program = f"import sys\nsys.modules['torch'] = None\n{program}"
    run = subprocess.run([sys.executable, "-c", program, photo], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    answers = model.predict(photo, top=99).classes
    by_name, largest = {c.name: c.score for c in answers}, max(abs(c.score) for c in answers)
    said = [line.rsplit(" ", 1) for line in run.stdout.splitlines()]
    assert len(said) == 5 and said[0][0] == answers[0].name
    assert max(abs(by_name[name] - float(score)) for name, score in said) <= 1e-3 * largest
