"""Everything DEMO_ours.py needs before it can train: images, backbone, features, vectors."""

from pathlib import Path

from core.datasets import paths
from core.datasets.registry import DEMO
from core.datasets.vectors import write_demo_vectors
from core.demo.backbone import WEIGHTS
from core.demo.dataset import render_demo
from core.features.extraction import extract
from core.features.feature_file import FeatureFile
from core.features.settings import ExtractionConfig
from core.files.atomic import sha256_file, write_bytes


def prepare_demo(data_root: Path) -> Path:
    """Make what is missing of the demo under ``data_root``; returns the feature file."""
    render_demo(data_root)
    vectors = paths.vectors_file(data_root, DEMO)
    if not vectors.exists():
        write_demo_vectors(paths.image_folder(data_root, DEMO) / DEMO.attribute_file, vectors)
    weights = data_root / "DEMO" / "backbone.safetensors"
    if not weights.is_file() or weights.read_bytes() != WEIGHTS.read_bytes():
        write_bytes(weights, WEIGHTS.read_bytes())
    features = paths.feature_file(data_root, DEMO, "demo")
    if features.exists() and FeatureFile(features).provenance.get("weights_sha256") != sha256_file(weights):
        features.unlink()  # of another backbone
    if not features.exists():
        config = ExtractionConfig(backbone="demo", weights=str(weights))
        extract(DEMO, data_root=data_root, out=features, config=config)
    return features
