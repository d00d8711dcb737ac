"""Parts that add up to the score, classes scored from their description, reasons in words with their sign."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from scipy.io import loadmat

from core.features.backbones import build_backbone
from core.features.images import Normaliser, load_image
from core.inference import explain as module
from core.inference.added_classes import add_classes
from core.inference.explain import explain, why_no_maps
from core.inference.names import shown_reason
from core.method import ClassSpace, with_settings
from core.methods import find_method
from core.VSMR import VSMR, Recipe
from tests.helpers_page import D, R, Shown, regions, trained_on

VARIANTS = [
    ("vsmr", {}),
    ("vsmr", {"root_attributes": False}),
    ("vsmr", {"root_features": False, "sharpness": 0.0}),
    ("vsmr", {"hubness": 0.0, "seen_expert": 0.0, "own": 1.0}),
    ("dazle", {}),
    ("dazle", {"use_w": False, "normalize_vectors": True}),
    ("dazle-prepared", {}),
    ("msdn", {}),
    ("transzero", {}),
    ("eszsl", {}),
    ("eszsl-prepared", {}),
]


@pytest.mark.parametrize(("name", "settings"), VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_parts_add_up_to_the_score(space, name, settings, dtype):
    trained = trained_on(space, name, **settings)
    trained.model.to(dtype)
    x = regions(dtype)
    found = explain(trained, x)
    with torch.no_grad():
        scores = trained.model.class_scores(x)
    near = (1e-9 if dtype == torch.float64 else 1e-5) * max(1.0, float(scores.abs().max()))
    assert float((found.scores - scores).abs().max()) < near
    for c in (0, 2):
        attributes, corrections = found.attributes(1, c), sum(float(v[1, c]) for v in found.corrections.values())
        assert abs(float(attributes.sum()) + corrections - float(scores[1, c])) < near
        if name == "vsmr":
            assert list(found.corrections) == ["hubness", "seen expert"]
            assert abs(float(found.places(1, c).sum() - attributes.sum())) < near
            assert abs(float((found.ev[1, :, 3] * found.y[c, 3]).sum() - attributes[3])) < near
        else:
            with pytest.raises(AssertionError, match="over places"):
                found.places(1, c)


@pytest.mark.parametrize("less", [0.0, 0.5])  # descriptions of one's own may be negative, and are not cut
@pytest.mark.parametrize(("name", "settings"), VARIANTS)
def test_a_class_described_anew_scores_as_if_the_model_had_known_it(space, name, settings, less):
    space = replace(space, att=space.att - less)
    trained = trained_on(space, name, **settings)
    g = torch.Generator().manual_seed(4)
    new = 7 * (torch.rand(2, space.att.shape[1], generator=g, dtype=torch.float64) - less)  # in another unit
    C = len(space.att)
    larger = ClassSpace(
        torch.cat([space.att, new]), space.seen, torch.cat([space.unseen, torch.tensor([C, C + 1])]), space.w2v
    )
    registered = find_method(name)
    rebuilt = (
        registered.build(with_settings(registered.recipe("*"), settings), larger, (R, D), 0, 1).model.double().eval()
    )
    kept = {k: v for k, v in trained.model.state_dict().items() if v.shape == rebuilt.state_dict()[k].shape}
    rebuilt.load_state_dict(rebuilt.state_dict() | kept)
    with torch.no_grad():
        if name == "vsmr":
            rebuilt.describe_classes(torch.arange(C + 2))
        expected = rebuilt.class_scores(regions())
    assert torch.allclose(expected[:, :C], trained.model.class_scores(regions()), atol=1e-9)
    frame = pd.DataFrame(new.numpy(), columns=trained.attributes)
    frame.insert(0, "class", ["one", "other"])
    added = explain(add_classes(trained, frame), regions())
    assert float((added.scores[:, C:] - expected[:, C:]).abs().max()) < 1e-5  # a sheet's numbers are float32
    assert torch.equal(added.scores[:, :C], explain(trained, regions()).scores)  # to the bit
    total = added.attributes(1, C + 1).sum() + sum(v[1, C + 1] for v in added.corrections.values())
    assert abs(float(total - added.scores[1, C + 1])) < 1e-9


@pytest.mark.parametrize(("name", "words"), [("vsmr-staged", "do not split over attributes"), ("dazle", "no map"),
                                              ("vsmr", "fewer than 20")])  # fmt: skip
def test_where_there_is_no_map_a_sentence_says_why(space, name, words, monkeypatch):
    trained = trained_on(space, name)
    found = explain(trained, regions())
    assert words in why_no_maps(trained, found)
    monkeypatch.setattr(module, "MAPS_FROM", len(space.seen))
    assert (why_no_maps(trained, found) == "") == (name == "vsmr")


def test_a_reason_is_named_by_what_the_photograph_shows(space):
    """A class without a red top: that the photograph shows less red than usual speaks for it."""
    assert shown_reason("red_top", 1.0) == "red top" and shown_reason("red_top", -1.0) == "less red top than usual"
    assert shown_reason("has_bill_color::red", -1.0) == "bill color: red, less than usual"
    found = explain(trained_on(space), regions())
    for_it = (found.g[:, None] * found.y) > 0  # (B,C,K)
    assert ((found.g[:, None] < 0) == (found.y < 0))[for_it].all() and (for_it & (found.y < 0)).any()


def test_deleting_the_region_that_the_map_points_at_lowers_its_attribute_most(shared):
    """On real photographs, |f| computed anew without the region; for five attributes of the true class each."""
    root, g = shared / "whole_cub", torch.Generator().manual_seed(0)
    mats = {name: loadmat(root / f"xlsa17/data/CUB/{name}.mat") for name in ("res101", "att_splits")}
    att = torch.from_numpy(mats["att_splits"]["att"].T.copy()).float()[:12]
    labels = mats["res101"]["labels"].ravel() - 1
    rows = np.concatenate([np.flatnonzero(labels == c)[:11] for c in range(12)])
    files = [str(mats["res101"]["image_files"].ravel()[row][0]).partition("images/")[2] for row in rows]
    weights = str(shared / "weights" / "mobilenet_v2_imagenet1k.safetensors")
    network = build_backbone("mobilenet_v2", weights, input_size=448, pool=2).eval()
    how = network.transform
    normalise = Normaliser(torch.device("cpu"), torch.float32, how)
    with torch.inference_mode():
        maps = []
        for file in files:
            picture = torch.from_numpy(load_image(root / "CUB/CUB_200_2011/images" / file, 448)[None].copy())
            maps.append(network(normalise(picture)).flatten(2).transpose(1, 2))
    x, y = F.normalize(torch.cat(maps).clone(), dim=2), torch.from_numpy(labels[rows].astype(np.int64))
    tested = torch.arange(len(y)) % 11 >= 8
    space = ClassSpace(att, torch.arange(12), torch.arange(0), torch.randn(312, 3, generator=g))
    model = VSMR(space, x.shape[2], Recipe(sharpness=30.0))
    model.fit(Shown(x[~tested], y[~tested]))
    own, attributes, hits = model.recipe.own, model.class_attributes(), []
    with torch.no_grad():
        for picture, c in zip(x[tested], y[tested].tolist(), strict=True):
            a, (_, gains, theta, rho) = model.attend(picture[None]), model._rooted(picture[None])
            kept = picture.repeat(len(picture), 1, 1)  # in the r-th, region r is nothing
            kept[range(len(picture)), range(len(picture))] = 0
            f = (gains * (rho @ kept).squeeze(1) - model.mu) @ model.P.T
            t = (1 - own) * rho.unsqueeze(2) + own * theta
            says = (t * ((gains * kept - model.mu) @ (model.W @ model.P).T)).sum(dim=1) * 100 / f.norm(dim=1)[:, None]
            for i in (attributes[c] * a.e[0]).topk(5).indices:
                hits.append(bool((a.e[0, i] - says[:, i]).argmax() == a.ev[0, :, i].argmax()))
    assert len(hits) == 180 and sum(hits) >= 0.7 * len(hits)
