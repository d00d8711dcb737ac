"""Parts that add up to the score, and classes scored from their description as if the model had known them."""

from dataclasses import replace

import pytest
import torch

from core.inference.explain import Explainer, explain
from core.inference.trained import Trained
from core.method import ClassSpace
from core.methods import find_method
from tests.helpers_page import D, R, regions, trained_on


def many_seen() -> ClassSpace:
    """More seen classes than attributes: the whole of E's regression is used."""
    g = torch.Generator().manual_seed(3)
    att = torch.rand(12, 5, generator=g, dtype=torch.float64)
    return ClassSpace(att, torch.arange(9), torch.arange(9, 12), torch.randn(5, 4, generator=g))


VARIANTS = [
    ("vsmr", {}),
    ("vsmr", {"root_attributes": False}),
    ("vsmr", {"centre_attributes": False}),
    ("vsmr", {"root_features": False, "whiten": False, "beta": 0.5}),
    ("dazle", {}),
    ("dazle", {"use_w": False, "normalize_vectors": True}),
    ("dazle-prepared", {}),
    ("msdn", {}),
    ("transzero", {}),
    ("eszsl", {}),
    ("eszsl-prepared", {}),
]
NEGATIVE = 0.5  # taken from all attributes: descriptions of one's own may be negative, and are not cut


@pytest.mark.parametrize(("name", "settings"), VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_parts_add_up_to_the_score(space, name, settings, dtype):
    trained = trained_on(space, name, **settings)
    trained.model.to(dtype)
    x = regions(dtype)
    found = explain(trained, x)
    with torch.no_grad():
        scores = trained.model.class_scores(x)
    scale = max(1.0, float(scores.abs().max()))
    assert torch.equal(found.scores, scores)
    summed = found.g @ found.z.T
    summed = summed if found.h is None else summed + found.h @ found.mixture.T
    summed = summed if found.own is None else summed + found.own
    assert float((summed - scores).abs().max()) < (1e-9 if dtype == torch.float64 else 1e-5) * scale
    for c in (0, 2):
        total = found.attributes(1, c).sum()
        if name == "vsmr":
            total = total + found.seen_classes(1, c).sum() + found.own[1, c]
        else:
            assert found.seen_classes(1, c) is None
        assert float((total - scores[1, c]).abs()) < 1e-5 * scale


@pytest.mark.parametrize("less", [0.0, NEGATIVE])
@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize(("name", "settings"), VARIANTS)
def test_a_class_described_anew_scores_as_if_the_model_had_known_it(space, name, settings, many, less):
    space = many_seen() if many else space
    space = replace(space, att=space.att - less)
    trained = trained_on(space, name, **settings)
    g = torch.Generator().manual_seed(4)
    new = 7 * (torch.rand(2, space.att.shape[1], generator=g, dtype=torch.float64) - less)  # in another unit
    C = len(space.att)
    larger = ClassSpace(
        torch.cat([space.att, new]), space.seen, torch.cat([space.unseen, torch.tensor([C, C + 1])]), space.w2v
    )
    registered = find_method(name)
    rebuilt = registered.build(trained.model.recipe, larger, (R, D), 0, 1).model.double().eval()
    kept = {k: v for k, v in trained.model.state_dict().items() if v.shape == rebuilt.state_dict()[k].shape}
    rebuilt.load_state_dict(rebuilt.state_dict() | kept)
    if name == "vsmr":
        rebuilt.epoch_counts.zero_()
        rebuilt.update_closed_forms()  # the prototypes again, from the same means
    expected = rebuilt.class_scores(regions()).detach()
    assert torch.allclose(expected[:, :C], trained.model.class_scores(regions()), atol=1e-9)
    assert float((explain(trained, regions()).described(new) - expected[:, C:]).abs().max()) < 1e-6


def test_known_classes_are_described_by_their_own_attributes(space):
    trained = trained_on(space)
    found = explain(trained, regions())
    assert torch.allclose(found.described(space.att)[:, space.unseen], found.scores[:, space.unseen], atol=1e-8)
    # of seen classes there are images too, which their description does not replace
    seen = found.scores[:, space.seen] - found.described(space.att)[:, space.seen]
    assert torch.allclose(seen.sum(dim=1), torch.zeros(len(seen), dtype=seen.dtype), atol=1e-8)
    assert seen.abs().max() > 1e-3
    assert torch.allclose(Explainer(trained).class_encoder.prepare(space.att), trained.model.z, atol=1e-12)


def test_the_mixture_has_both_signs_and_unit_length(space):
    found = explain(trained_on(space, kernel_width=None), regions())
    assert (found.mixture > 0).any() and (found.mixture < 0).any()
    lengths = ((found.mixture @ found.class_encoder.gram) * found.mixture).sum(dim=1)
    assert torch.allclose(lengths, torch.ones(len(lengths), dtype=lengths.dtype))


def test_a_method_whose_scores_do_not_split_has_its_map_alone(space):
    registered = find_method("vsmr-staged")
    model = registered.build(registered.recipe("*"), space, (R, D), 0, 1).model
    trained = Trained(model=model.float().eval(), space=space, gamma=0.0, classes=[], attributes=[], config={})
    found = explain(trained, regions(torch.float32))
    assert found.g is None and found.h is None and found.class_encoder is None
    assert torch.equal(found.theta, model.attend(regions(torch.float32)).theta)
    with pytest.raises(ValueError, match="description alone"):
        found.described(space.att)


def test_an_encoder_learned_by_gradient_does_not_split(space):
    trained = trained_on(space, ridge_encoder=False)
    assert explain(trained, regions()).g is None


def test_explaining_leaves_the_model_as_it_was(space):
    trained = trained_on(space)
    before = {k: v.clone() for k, v in trained.model.state_dict().items()}
    explain(trained, regions())
    assert all(torch.equal(v, before[k]) for k, v in trained.model.state_dict().items())
