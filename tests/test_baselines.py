"""MSDN and TransZero against textbook forms that build every tensor of the equations, in float64."""

import math

import pytest
import torch
import torch.nn.functional as F

from core import MSDN as msdn
from core import TransZero as transzero
from core.files.errors import UserError
from core.method import ClassSpace
from core.MSDN import MSDN, distillation
from core.TransZero import TransZero, relative_geometry

B, R, D, K, C, V = 6, 9, 16, 11, 7, 5
EXACT = {"rtol": 1e-9, "atol": 1e-9}


@pytest.fixture(autouse=True)
def double():
    """Models and buffers are built in float64, exactly as the oracles are."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        yield
    torch.set_default_dtype(before)


@pytest.fixture
def space():
    g = torch.Generator().manual_seed(0)
    att = torch.rand(C, K, generator=g) * (torch.rand(C, K, generator=g) > 0.4)
    att[:, 0] += 0.1
    return ClassSpace(att, torch.tensor([0, 1, 3, 5]), torch.tensor([2, 4, 6]), torch.randn(K, V, generator=g))


@pytest.fixture
def batch():
    g = torch.Generator().manual_seed(1)
    x = F.normalize(torch.randn(B, R, D, generator=g), dim=2)
    return x, torch.tensor([0, 1, 3, 5, 0, 1])


def small_transzero(space, regions=R, **settings):
    recipe = transzero.Recipe(**{"width": 12, "feed_forward": 10, **settings})
    return TransZero(space, regions, D, recipe).double()


def textbook_classification(s, y, space, lam):
    """Cross-entropy and self-calibration by loops over images and classes."""
    margin = [1.0 if c in space.unseen.tolist() else -1.0 for c in range(C)]
    ce, mass = 0.0, 0.0
    for b in range(len(s)):
        ce = ce - torch.log(s[b, y[b]].exp() / sum(s[b, c].exp() for c in range(C)))
        every = [(s[b, c] + margin[c]).exp() for c in range(C)]
        mass = mass + sum(every[c] for c in space.unseen.tolist()) / sum(every)
    return ce / len(s) - lam * torch.log(mass / len(s))


def gradients(model, loss):
    """Gradient of every trainable parameter, by name."""
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    return dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))


def assert_same_loss_and_gradients(model, loss, expected, unmoved=()):
    """``unmoved``: parameters that shift all logits of a softmax alike, so that their gradient is 0; no other is."""
    torch.testing.assert_close(loss, expected, **EXACT)
    wanted = gradients(model, expected)
    for name, got in gradients(model, loss).items():
        torch.testing.assert_close(got, wanted[name], **EXACT, msg=lambda m, name=name: f"{name}: {m}")
    assert {name for name, g in wanted.items() if g.abs().max() < 1e-12} == set(unmoved)


# ---- MSDN


def textbook_msdn(x, v, a, z):
    """Scores (B,C) of both branches, one image, attribute and region after the other."""
    F_ = torch.einsum("brk,brd->bkd", torch.einsum("kv,vd,brd->brk", v, a.W1, x).softmax(dim=1), x)
    psi1 = torch.einsum("kv,vd,bkd->bk", v, a.W2, F_)
    rows = []
    for b in range(B):
        scores = 0
        for r in range(R):
            look = torch.stack([v[i] @ a.W3 @ x[b, r] for i in range(K)]).exp()
            scores = scores + look / look.sum() * torch.stack([v[i] @ a.W4 @ x[b, r] for i in range(K)])
        rows.append(scores)
    psi2 = torch.stack(rows)
    return psi1 @ z.T, psi2 @ z.T


def textbook_distillation(s1, s2, margin):
    p, q = (s1 + margin).softmax(1), (s2 + margin).softmax(1)
    m = (p + q) / 2
    jsd = (F.kl_div(m.log(), p, reduction="batchmean") + F.kl_div(m.log(), q, reduction="batchmean")) / 2
    d = (s1 - s2).abs()
    return jsd + sum((row**3).sum() / (row**2).sum().sqrt() for row in d) / len(d)


def msdn_off_its_start(space, **settings):
    model = MSDN(space, D, msdn.Recipe(**settings)).double()
    with torch.no_grad():
        for p in (model.attention.W1, model.attention.W3, model.attention.W4):
            p.normal_()
        model.attention.v.mul_(1.7)
    return model


@pytest.mark.parametrize("normalize", [True, False])
def test_msdn_equals_textbook_in_scores_loss_and_gradients(space, batch, normalize):
    x, y = batch
    model = msdn_off_its_start(space, normalize_vectors=normalize, lambda_distill=0.3)
    v = F.normalize(model.attention.v, dim=1) if normalize else model.attention.v
    s1, s2 = textbook_msdn(x, v, model.attention, space.z)
    for got, expected in zip(model.branch_scores(x), (s1, s2), strict=True):
        torch.testing.assert_close(got, expected, **EXACT)
    expected = sum(textbook_classification(s, y, space, 0.1) for s in (s1, s2))
    expected = expected + 0.3 * textbook_distillation(s1, s2, model.margin)
    assert_same_loss_and_gradients(model, model.loss(x, y)["loss"], expected)


@pytest.mark.parametrize("fusion", [1.0, 0.9, 0.0])
def test_msdn_prediction_fuses_the_branches(space, batch, fusion):
    model = msdn_off_its_start(space, fusion=fusion)
    s1, s2 = model.branch_scores(batch[0])
    assert (s1 - s2).abs().max() > 0.1
    torch.testing.assert_close(model.class_scores(batch[0]), fusion * s1 + (1 - fusion) * s2, **EXACT)


def test_msdn_attention_sums_to_one_and_starts_even(space, batch):
    a = MSDN(space, D, msdn.Recipe()).double().attend(batch[0])
    torch.testing.assert_close(a.theta, torch.full((B, R, K), 1 / R))
    torch.testing.assert_close(a.beta, torch.full((B, R, K), 1 / K))
    a = msdn_off_its_start(space).attend(batch[0])
    torch.testing.assert_close(a.theta.sum(dim=1), torch.ones(B, K))
    torch.testing.assert_close(a.beta.sum(dim=2), torch.ones(B, R))
    assert a.w.shape == (B, K)


def test_msdn_second_branch_starts_silent_and_learns(space, batch):
    model = MSDN(space, D, msdn.Recipe()).double()
    s1, s2 = model.branch_scores(batch[0])
    assert not s2.any() and s1.any() and 0.5 < model.attention.W2.std() < 1.5
    model.loss(*batch)["loss"].backward()
    assert model.attention.W4.grad.abs().sum() > 0


def test_distillation_by_hand():
    none = torch.zeros(2)
    far = torch.tensor([[200.0, 0.0]])  # all mass on different classes; differences 200 and -200
    cubes = 2 * 200**3 / (200 * math.sqrt(2))
    assert distillation(far, -far + 200, none).item() == pytest.approx(math.log(2) + cubes)
    assert distillation(far, far, none).item() == 0
    # the same posteriors, scores apart by 3 in both classes: no divergence, 2·27 / (3√2)
    assert distillation(far, far + 3, none).item() == pytest.approx(54 / (3 * math.sqrt(2)))
    p, q = torch.tensor([[0.5, 0.5]]), torch.tensor([[0.9, 0.1]])
    kl = [0.5 * math.log(0.5 / 0.7) + 0.5 * math.log(0.5 / 0.3), 0.9 * math.log(0.9 / 0.7) + 0.1 * math.log(0.1 / 0.3)]
    d = [abs(math.log(0.5 / 0.9)), abs(math.log(0.5 / 0.1))]
    cubes = (d[0] ** 3 + d[1] ** 3) / math.hypot(*d)
    assert distillation(p.log(), q.log(), none).item() == pytest.approx(sum(kl) / 2 + cubes)
    # the posteriors are those of s + m: both of these have them equal to p and q
    m = torch.tensor([-1.0, 1.0])
    assert distillation(p.log() - m, q.log() - m, m).item() == pytest.approx(sum(kl) / 2 + cubes)


# ---- TransZero


def loop_geometry(encoder, side):
    """G (R,R) by a loop over pairs of cells."""
    weight, b = encoder.w_g.weight[0], encoder.w_g.bias[0]
    rows = []
    for r in range(side * side):
        row = []
        for q in range(side * side):
            dy, dx = abs(r // side - q // side) / side, abs(r % side - q % side) / side
            numbers = [math.log(max(d / (1 + 1 / side), 1e-3)) for d in (dy, dx)] + [0.0, 0.0]
            angles = [100 * n / 1000 ** (f / 8) for n in numbers for f in range(8)]
            waves = torch.tensor([math.sin(t) for t in angles] + [math.cos(t) for t in angles])
            row.append(torch.relu(weight @ waves + b))
        rows.append(torch.stack(row))
    return torch.stack(rows)


def loop_encoder(encoder, h, side):
    """The encoder for one image h (R,d), attention by a loop over pairs of regions."""
    G = loop_geometry(encoder, side)
    out = []
    for r in range(len(h)):
        logits = [encoder.q(h[r]) @ encoder.k(h[q]) / h.shape[1] ** 0.5 - G[r, q] for q in range(len(h))]
        total = sum(t.exp() for t in logits)
        mixed = sum(t.exp() / total * encoder.v(h[q]) for q, t in enumerate(logits))
        u = encoder.norm1(h[r] + encoder.o(mixed))
        u = encoder.norm2(h[r] + u)
        out.append(encoder.ffn.norm(u + encoder.ffn.fc2(torch.relu(encoder.ffn.fc1(u)))))
    return torch.stack(out)


def textbook_decoder(decoder, a, m):
    """θ (R,K) and F (K,d) for one image m (R,d), with PyTorch's own multi-head attention."""
    t = a
    if decoder.among is not None:
        t = decoder.norm1(t + decoder.among(t, t, t)[0])
    mixed, theta = decoder.over(t, m, m)
    t = decoder.norm2(t + mixed)
    return theta.T, decoder.ffn.norm(t + decoder.ffn.fc2(torch.relu(decoder.ffn.fc1(t))))


def textbook_transzero(model, x):
    """θ (B,R,K) and ψ (B,K), one image after the other."""
    v = F.normalize(model.v, dim=1) if model.recipe.normalize_vectors else model.v
    found = []
    for image in x:
        m = loop_encoder(model.encoder, model.embed_regions(image), 3)
        theta, features = textbook_decoder(model.decoder, model.embed_attributes(v), m)
        found.append((theta, torch.stack([v[i] @ model.W @ features[i] for i in range(K)])))
    return torch.stack([theta for theta, _ in found]), torch.stack([psi for _, psi in found])


@pytest.mark.parametrize("settings", [{}, {"normalize_vectors": True}, {"attribute_attention": False}])
@pytest.mark.parametrize("training", [True, False])
def test_transzero_equals_textbook_in_attention_scores_loss_and_gradients(space, batch, settings, training):
    x, y = batch
    model = small_transzero(space, dropout=0.0, **settings)
    model.encoder.drop_attention.p = 0.0
    with torch.no_grad():
        model.v.mul_(1.7)
        for p in (model.decoder.over.in_proj_bias, model.decoder.over.out_proj.bias):  # they start at 0
            p.normal_()
    theta, psi = textbook_transzero(model.eval(), x)
    model.train(training)
    found = model.attend(x)
    torch.testing.assert_close(found.theta, theta, **EXACT)
    torch.testing.assert_close(found.e, psi, **EXACT)
    s = torch.stack([torch.stack([(psi[b] * space.z[c]).sum() for c in range(C)]) for b in range(B)])
    torch.testing.assert_close(model.class_scores(x), s, **EXACT)
    regression = sum(((psi[b] - space.z[y[b]]) ** 2).sum() for b in range(B)) / (B * K)
    expected = textbook_classification(s, y, space, 0.3) + 0.005 * regression
    assert_same_loss_and_gradients(model, model.loss(x, y)["loss"], expected, ["encoder.k.bias"])


def test_transzero_geometry_closes_some_pairs(space):
    """The loop and the encoder agree where the ReLU is shut, too."""
    encoder = small_transzero(space).encoder
    G = loop_geometry(encoder, 3)
    assert (G == 0).any() and (G > 0).any()
    torch.testing.assert_close(F.relu(encoder.w_g(encoder.geometry)).squeeze(2), G, **EXACT)


def test_relative_geometry_depends_on_the_offset_alone():
    side = 14
    g = relative_geometry(side)
    assert g.shape == (196, 196, 64) and g.isfinite().all()
    g = g.view(side, side, side, side, -1)
    torch.testing.assert_close(g[0, 0, 1, 2], g[2, 1, 3, 3])
    torch.testing.assert_close(g[0, 0, 1, 2], g[1, 2, 0, 0])  # there and back
    assert (g[0, 0, 1, 2] - g[0, 0, 2, 1]).abs().max() > 0.1  # across is not down


def test_transzero_starts_as_published(space):
    model = small_transzero(space, width=200)
    bound = (6 / 400) ** 0.5  # Xavier uniform
    for layer in (model.encoder.q, model.encoder.k, model.encoder.v, model.encoder.o):
        assert not layer.bias.any() and 0.98 * bound < layer.weight.abs().max() <= bound
    assert 0.9 < model.W.std() < 1.1
    torch.testing.assert_close(model.v.norm(dim=1), torch.ones(K))
    assert not model.decoder.over.in_proj_bias.any() and not model.decoder.among.out_proj.bias.any()


@pytest.mark.parametrize("side", [7, 14])
def test_transzero_takes_both_grids(space, side):
    model = small_transzero(space, side * side).eval()
    x = F.normalize(torch.randn(2, side * side, D), dim=2)
    a = model.attend(x)
    assert a.theta.shape == (2, side * side, K)
    torch.testing.assert_close(a.theta.sum(dim=1), torch.ones(2, K))
    assert a.w.shape == a.e.shape == (2, K)
    assert model.class_scores(x).shape == (2, C)


def test_transzero_state_is_of_one_shape_for_every_grid(space):
    """The geometry is made, not stored."""
    small_transzero(space, 196).load_state_dict(small_transzero(space, 49).state_dict())


@pytest.mark.parametrize("regions", [48, 50])
def test_transzero_wants_a_square_grid(space, regions):
    with pytest.raises(UserError, match=f"{regions} regions do not form a square"):
        small_transzero(space, regions)


def test_transzero_drops_where_its_authors_do_and_in_training_only(space, batch, monkeypatch):
    model, dropped, plain = small_transzero(space, dropout=0.4), [], F.dropout

    def dropout(tensor, p=0.5, training=True, inplace=False):
        if training:
            dropped.append((p, tuple(tensor.shape[1:])))
        return plain(tensor, p, training, inplace)

    monkeypatch.setattr(F, "dropout", dropout)
    first = model.class_scores(batch[0])
    encoder = [(0.1, (R, R)), (0.4, (R, 12)), (0.4, (R, 12)), (0.4, (R, 10)), (0.4, (R, 12))]
    decoder = [(0.4, (K, K)), (0.4, (K, 12)), (0.4, (K, R)), (0.4, (K, 12)), (0.4, (K, 10)), (0.4, (K, 12))]
    assert dropped == encoder + decoder
    assert not torch.equal(model.class_scores(batch[0]), first)
    dropped.clear()
    model.eval()
    assert torch.equal(model.class_scores(batch[0]), model.class_scores(batch[0])) and not dropped


def test_transzero_drops_other_attributes_for_every_image(space, batch):
    model = small_transzero(space, dropout=0.4)
    t = model.decoder.queries(model.embed_attributes(model.v), B)
    assert t.shape == (B, K, 12)
    assert all((t[0] - t[b]).abs().max() > 1e-3 for b in range(1, B))


def test_transzero_feels_where_regions_lie(space, batch):
    """Shuffled regions give shuffled attention without geometry, another one with it."""
    model = small_transzero(space).eval()
    order = torch.tensor([4, 0, 8, 2, 6, 1, 3, 7, 5])
    moved = model.class_scores(batch[0][:, order])
    assert (moved - model.class_scores(batch[0])).abs().max() > 1e-6
    with torch.no_grad():
        model.encoder.w_g.weight.zero_()
    moved = model.class_scores(batch[0][:, order])
    torch.testing.assert_close(moved, model.class_scores(batch[0]), **EXACT)


# ---- both


def toy(seed):
    """A space and images whose regions carry the class's attributes; seen classes only."""
    g = torch.Generator().manual_seed(seed)
    att = (torch.rand(8, 10, generator=g) > 0.5).double() + 0.05
    space = ClassSpace(att, torch.arange(6), torch.tensor([6, 7]), torch.eye(10))
    parts = torch.randn(10, 24, generator=g)  # (K,D): what each attribute looks like
    y = torch.randint(6, (60,), generator=g)
    x = torch.randn(60, 9, 24, generator=g) * 0.3
    where = torch.randint(9, (60, 10), generator=g)  # each attribute lies in one region
    for b in range(60):
        x[b].index_add_(0, where[b], att[y[b]].unsqueeze(1) * parts)
    return space, F.normalize(x, dim=2), y


def either(name, space, regions, channels, **settings):
    if name == "msdn":
        return MSDN(space, channels, msdn.Recipe())
    return TransZero(space, regions, channels, transzero.Recipe(**settings))


@pytest.mark.parametrize("name", ["msdn", "transzero"])
def test_learns_a_toy(name):
    space, x, y = toy(7)
    model = either(name, space, 9, 24, width=32, feed_forward=32, dropout=0.1).double()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-2 if name == "msdn" else 5e-3)
    losses = []
    for _ in range(40):
        parts = model.loss(x, y)
        optimizer.zero_grad()
        parts["loss"].backward()
        optimizer.step()
        losses.append(parts["ce"].item())
    assert losses[-1] < 0.3 * losses[0]
    model.eval()
    right = model.class_scores(x).argmax(dim=1) == y
    assert right.double().mean() > 0.9


@pytest.mark.parametrize("name", ["msdn", "transzero"])
def test_a_step_never_waits_for_a_value(space, name):
    """Tensors of the meta device have no values: reading one on the host raises."""
    model = either(name, space, R, D, width=12, feed_forward=10).to("meta")
    y = torch.empty(B, dtype=torch.int64, device="meta")
    losses = model.loss(torch.empty(B, R, D, device="meta", dtype=torch.float32), y)
    losses["loss"].backward()
    assert all(value.shape == () for value in losses.values())


@pytest.mark.parametrize("name", ["msdn", "transzero"])
def test_float32_is_the_default_of_use(space, name):
    torch.set_default_dtype(torch.float32)
    space = ClassSpace(space.att.float(), space.seen, space.unseen, space.w2v)
    scores = either(name, space, R, D).class_scores(F.normalize(torch.randn(B, R, D), dim=2))
    assert scores.dtype == torch.float32
    assert either(name, space, R, D).gamma == 2.0
