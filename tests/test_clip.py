"""CLIP as a baseline: image embeddings as features, class texts beside them, scored like every other method.

A tiny model with random weights and the tokenizer that open_clip ships; the first run with real weights is a user's.
"""

import itertools
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from core.datasets.class_text import attribute_phrase, class_words, embed, prompts
from core.datasets.registry import DATASETS
from core.datasets.vectors import attribute_vectors, write_attribute_vectors
from core.experiments.identity import run_config
from core.experiments.inputs import load_inputs, split_digest
from core.experiments.run import run
from core.experiments.sweep import Plan, jobs_of
from core.features.backbones import build_backbone
from core.features.extraction import extract
from core.features.feature_file import FeatureFile
from core.features.settings import ExtractionConfig
from core.files.errors import UserError
from core.inference.trained import load_trained
from core.method import ClassSpace
from core.methods import find_method, methods
from core.training.folds import final_fold, validation_fold
from tests.helpers import TOY, drawn_folder
from tests.helpers_features import make_toy

try:
    import open_clip
except ImportError:
    open_clip = None
needs_open_clip = pytest.mark.skipif(open_clip is None, reason="open_clip is not installed")
NAME, E = "open_clip:tiny-test/random", 24
W2V, NAMES = np.ones((8, 3), np.float32), [f"has_part::kind_{k}" for k in range(8)]


@pytest.fixture
def tiny(monkeypatch):
    """A CLIP of two small towers, known to open_clip by name."""
    towers = {"layers": 2, "width": 32}
    config = {
        "embed_dim": E,
        "vision_cfg": towers | {"image_size": 32, "patch_size": 8, "head_width": 16},
        "text_cfg": towers | {"context_length": 77, "vocab_size": 49408, "heads": 2},
    }
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny-test", config)


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """Pictures with the names of their attributes and vectors."""
    monkeypatch.setitem(DATASETS, "TOY", TOY)
    (make_toy(tmp_path) / "TOY/TOY_images/attributes.txt").write_text(
        "".join(f"{k} {n}\n" for k, n in enumerate(NAMES, 1))
    )
    np.save(tmp_path / "v.npy", W2V)
    (tmp_path / "w2v").mkdir()
    made = attribute_vectors(str(tmp_path / "v.npy"), NAMES)
    write_attribute_vectors(tmp_path / "w2v/TOY_attribute.pkl", made, "")
    return tmp_path


def test_prompts_say_names_and_telling_attributes_which_are_averaged():
    assert class_words("001.Black_footed_Albatross") == "Black footed Albatross"
    assert class_words("blue+whale") == "blue whale"
    assert attribute_phrase("has_bill_shape::curved_(up_or_down)") == "which has curved bill shape"
    assert attribute_phrase("newworld") == "newworld"
    att = np.array([[1, 0, 0.2], [0, 1, 0.2]], np.float32)
    made = prompts("CUB", ["001.A_b", "002.C"], att, ["has_x::red", "has_y::blue", "has_z::w"])
    assert made == [
        ["a photo of a A b, a type of bird.", "a photo of a A b, which has red x."],
        ["a photo of a C, a type of bird.", "a photo of a C, which has blue y."],
    ]
    assert prompts("OWN", ["d"], att[:1], ["x", "y", "z"]) == [["a photo of a d."]]
    known = {"a": [1.0, 0.0], "b": [0.0, 1.0], "c": [0.6, 0.8], "d": [0.0, -1.0]}
    text = embed([["a", "b", "c"], ["d"]], lambda texts: np.array([known[t] for t in texts]))
    np.testing.assert_allclose(text, [[[1, 0], [0.3, 0.9]], [[0, -1], [0, -1]]], rtol=1e-6)


def test_scores_are_cosines_of_image_and_text():
    g = torch.Generator().manual_seed(0)
    text = torch.nn.functional.normalize(torch.randn(4, 2, 5, generator=g), dim=2)
    space = ClassSpace(torch.rand(4, 3), torch.tensor([0, 1]), torch.tensor([2, 3]), torch.rand(3, 2), text)
    x = torch.randn(6, 1, 5, generator=g)
    for kind, name in enumerate(("clip", "clip-attributes")):
        m = find_method(name)
        model = m.build(m.recipe("*"), space, (1, 5), 0, 0).model
        expected = [[torch.dot(i[0], t[kind]).item() / i[0].norm().item() for t in text] for i in x]
        torch.testing.assert_close(model.class_scores(x), torch.tensor(expected))
    for bad, shape in ((replace(space, text=None), (1, 5)), (space, (49, 5)), (space, (1, 6))):
        with pytest.raises(UserError, match=r"--backbone open_clip:MODEL/PRETRAINED"):
            find_method("clip").build(find_method("clip").recipe("*"), bad, shape, 0, 0)


def test_each_fold_has_the_texts_of_its_own_classes(toy):
    text = np.random.default_rng(0).random((9, 2, 4), dtype=np.float32)
    before = split_digest(toy)
    toy = replace(toy, class_text=text)
    assert split_digest(toy) != before != split_digest(replace(toy, class_text=text + 1))
    assert torch.equal(final_fold(toy, W2V).space.text, torch.from_numpy(text))
    turned = replace(toy, labels=8 - toy.labels)  # the seen classes are the last ones
    for m, seed in itertools.product((toy, turned), (0, 3)):
        space = validation_fold(m, W2V, seed).space
        assert torch.equal(space.text, torch.from_numpy(text[m.seen])) and len(space.text) == len(space.att)
        assert torch.equal(space.att, torch.from_numpy(m.att[m.seen]))


def test_clip_runs_where_it_is_named_alone():
    named = {job.method for job in jobs_of(Plan(datasets=("CUB",), seeds=(0,)))}
    assert named == {*methods()} - {"clip", "clip-attributes", "gda"}
    assert {job.method for job in jobs_of(Plan(datasets=("CUB",), methods=("clip",), seeds=(0,)))} == {"clip"}


@needs_open_clip
def test_features_are_the_models_own_image_embeddings(tiny):
    backbone = build_backbone(NAME)
    assert backbone.shape == (E, 1, 1) and backbone.input_size == 32 and backbone.pretraining == "nothing"
    x = torch.rand(3, 3, 32, 32)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = open_clip.create_model("tiny-test").eval()
    with torch.inference_mode():
        expected = model.encode_image(x, normalize=True)
        texts = model.encode_text(open_clip.get_tokenizer("tiny-test")(["a bird", "a whale"]), normalize=True)
    torch.testing.assert_close(backbone(x)[:, :, 0, 0], expected)
    np.testing.assert_allclose(backbone.network.encode(["a bird", "a whale"]), texts, atol=1e-6)


@needs_open_clip
def test_a_weights_file_is_taken(tiny, tmp_path):
    model, path = build_backbone(NAME).network.model, tmp_path / "w.safetensors"
    save_file({k: v + 1 if k == "logit_scale" else v for k, v in model.state_dict().items()}, path)
    other = build_backbone(NAME, path)
    assert other.weights == "w.safetensors" and other.network.model.logit_scale == model.logit_scale + 1


@needs_open_clip
def test_class_texts_are_of_the_backbones_own_text_tower(tiny, toy):
    backbone = build_backbone(NAME)
    text = backbone.class_text(replace(toy, attribute_names=NAMES))
    assert text.shape == (9, 2, E) and text.dtype == np.float32
    said = prompts(toy.name, toy.class_names, toy.att, NAMES)[3]
    np.testing.assert_allclose(text[3, 0], backbone.network.encode(said[:1])[0], atol=1e-6)
    np.testing.assert_allclose(text[3, 1], backbone.network.encode(said[1:]).mean(axis=0), atol=1e-6)
    unnamed = backbone.class_text(toy)  # no attribute has a name
    np.testing.assert_array_equal(unnamed[:, 0], unnamed[:, 1])
    assert build_backbone("squeezenet1_1", "random", input_size=64).class_text(toy) is None


@needs_open_clip
def test_activation_transform_and_weights_are_the_pretrained_tags(monkeypatch):
    asked = []

    def create(name, **how):
        asked.append((name, how))
        raise OSError("no network\nmore")

    monkeypatch.setattr(open_clip, "create_model", create)
    # a run records openai as the weights, and predict asks for them so
    for tag, weights in (("openai", None), ("openai", "openai"), ("laion2b_s34b_b88k", None)):
        with pytest.raises(UserError, match=r"could not be made with its weights \(no network\)\. Offline\?"):
            build_backbone(f"open_clip:ViT-B-16/{tag}", weights)
    (name, how), again, other = asked
    assert again == (name, how) and name == "ViT-B-16" and how["pretrained"] == "openai"
    assert how["force_quick_gelu"] is True and other[1]["force_quick_gelu"] is False
    assert how["force_preprocess_cfg"]["interpolation"] == "bicubic" and how["force_preprocess_cfg"]["mean"][0] > 0.48


@needs_open_clip
def test_what_open_clip_does_not_have_is_said(monkeypatch):
    for name in ("ViT-B-17/openai", "ViT-B-16"):
        with pytest.raises(UserError, match=rf"no '{name}' in open_clip .*: of {name[:8]} it has .*random"):
            build_backbone(f"open_clip:{name}")
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(UserError, match=r"pip install open_clip_torch"):
        build_backbone("open_clip:ViT-B-16/openai")


@needs_open_clip
@pytest.mark.parametrize("described_only", [True, False])
def test_a_class_without_images_has_no_text_and_stops_no_other_method(tiny, tmp_path, described_only):
    drawn_folder(tmp_path)
    if not described_only:
        sheet = (tmp_path / "attributes.csv").read_text()
        (tmp_path / "attributes.csv").write_text(sheet[: sheet.index("creature 5")])
    config = ExtractionConfig(backbone=NAME, device="cpu")
    extract(DATASETS["OWN"], data_root=tmp_path, config=config, out=tmp_path / "f")
    text = load_inputs("OWN", data_root=tmp_path, features=tmp_path / "f").metadata.class_text
    assert text is None if described_only else text.shape == (5, 2, E)


@needs_open_clip
@pytest.mark.parametrize("method", ["clip", "clip-attributes"])
def test_a_run_is_scored_like_every_other(tiny, root, tmp_path, method):
    features = extract(TOY, data_root=root, config=ExtractionConfig(backbone=NAME, device="cpu"))
    assert features.name == "feature_map_open_clip_tiny-test_random_TOY.hdf5"
    with FeatureFile(features) as file:
        assert file.shape == (90, E, 1) and file.provenance["pretraining_saw_unseen"] == "no"  # random weights
    inputs = load_inputs("TOY", data_root=root, features=features)
    config = run_config(inputs, method, find_method(method).recipe("TOY"), seed=0)
    text = inputs.metadata.class_text
    result = run(config, inputs, tmp_path / "run")
    assert result["chosen"]["configurations"] == 1 and 0 <= result["standard"]["H"] <= 1
    trained = load_trained(tmp_path / "run")
    assert torch.equal(trained.model.text, torch.from_numpy(text[:, int(method != "clip")]))
    # T1 by hand: the nearest text among the unseen classes
    m, kind = inputs.metadata, int(method != "clip")
    x = FeatureFile(features).read(m.test_unseen_loc)[:, :, 0].astype(np.float32)
    nearest = m.unseen[(x @ text[m.unseen, kind].T).argmax(1)]
    right = [(nearest[m.labels[m.test_unseen_loc] == c] == c).mean() for c in m.unseen]
    assert result["standard"]["T1"] == pytest.approx(np.mean(right))
