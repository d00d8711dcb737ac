"""MSDN and TransZero against textbook forms that build every tensor of the equations, in float64."""

import math

import pytest
import torch
import torch.nn.functional as F

from core.DAZLE import ClassSpace
from core.files.errors import UserError
from core.MSDN import MSDN, classification_losses, distillation, margins
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


def small_transzero(space, regions=R, **options):
    return TransZero(space, D, regions, width=12, feed_forward=10, **options).double()


def textbook_classification(s, y, space, lam, seen_only):
    """Cross-entropy and self-calibration by loops over images and classes."""
    margin = [1.0 if c in space.unseen.tolist() else -1.0 for c in range(C)]
    ce, mass = 0.0, 0.0
    for b in range(len(s)):
        classes = space.seen.tolist() if seen_only else range(C)
        ce = ce - torch.log(s[b, y[b]].exp() / sum(s[b, c].exp() for c in classes))
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
    """Scores (B,C) of both branches with F (B,K,D), S (B,R,V) and Att (B,R,K)."""
    theta = torch.einsum("kv,vd,brd->brk", v, a.W1, x).softmax(dim=1)
    F_ = torch.einsum("brk,brd->bkd", theta, x)
    psi1 = torch.einsum("kv,vd,bkd->bk", v, a.W2, F_)
    beta = torch.einsum("brd,vd,kv->brk", x, a.W3, v).softmax(dim=2)
    S = torch.einsum("brk,kv->brv", beta, v)
    region = torch.einsum("brd,vd,brv->br", x, a.W4, S)
    att = torch.einsum("kv,vd,brd->brk", v, a.W_att, x)
    psi2 = torch.einsum("br,brk->bk", region, att)
    return psi1 @ z.T, psi2 @ z.T


def textbook_distillation(s1, s2):
    p, q = s1.softmax(1), s2.softmax(1)
    m = (p + q) / 2
    jsd = (F.kl_div(m.log(), p, reduction="batchmean") + F.kl_div(m.log(), q, reduction="batchmean")) / 2
    return jsd + ((p - q) ** 2).sum() / len(p)


def msdn_off_its_start(space, **options):
    model = MSDN(space, D, **options).double()
    with torch.no_grad():
        for p in (model.attention.W1, model.attention.W3):
            p.normal_()
        model.attention.v.mul_(1.7)
    return model


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("seen_only", [True, False])
def test_msdn_equals_textbook_in_scores_loss_and_gradients(space, batch, normalize, seen_only):
    x, y = batch
    model = msdn_off_its_start(space, normalize_vectors=normalize, seen_only=seen_only, lambda_distill=0.3)
    v = F.normalize(model.attention.v, dim=1) if normalize else model.attention.v
    s1, s2 = textbook_msdn(x, v, model.attention, space.z)
    for got, expected in zip(model.branch_scores(x), (s1, s2), strict=True):
        torch.testing.assert_close(got, expected, **EXACT)
    expected = sum(textbook_classification(s, y, space, 0.1, seen_only) for s in (s1, s2))
    expected = expected + 0.3 * textbook_distillation(s1, s2)
    assert_same_loss_and_gradients(model, model.loss(x, y)["loss"], expected)


def test_msdn_parts_add_up_with_the_published_weights(space, batch):
    parts = msdn_off_its_start(space).loss(*batch)
    torch.testing.assert_close(parts["loss"], parts["ce"] + 0.1 * parts["cal"] + 0.001 * parts["distill"], **EXACT)


@pytest.mark.parametrize("fusion", [1.0, 0.9, 0.0])
def test_msdn_prediction_fuses_the_branches(space, batch, fusion):
    model = msdn_off_its_start(space, fusion=fusion)
    s1, s2 = model.branch_scores(batch[0])
    assert (s1 - s2).abs().max() > 0.1
    torch.testing.assert_close(model.class_scores(batch[0]), fusion * s1 + (1 - fusion) * s2, **EXACT)


def test_msdn_attention_sums_to_one_and_starts_even(space, batch):
    a = MSDN(space, D).double().attention(batch[0])
    torch.testing.assert_close(a.theta, torch.full((B, R, K), 1 / R))
    torch.testing.assert_close(a.beta, torch.full((B, R, K), 1 / K))
    a = msdn_off_its_start(space).attention(batch[0])
    torch.testing.assert_close(a.theta.sum(dim=1), torch.ones(B, K))
    torch.testing.assert_close(a.beta.sum(dim=2), torch.ones(B, R))
    assert a.w.shape == (B, K)


def test_msdn_keeps_frozen_vectors(space, batch):
    model = MSDN(space, D, train_vectors=False).double()
    model.loss(*batch)["loss"].backward()
    assert model.attention.v.grad is None


def test_distillation_by_hand():
    far = torch.tensor([[200.0, 0.0]])
    assert distillation(far, -far).item() == pytest.approx(math.log(2) + 2)  # all mass on different classes
    assert distillation(far, far + 3).item() == pytest.approx(0, abs=1e-12)
    p, q = torch.tensor([[0.5, 0.5]]), torch.tensor([[0.9, 0.1]])
    kl = [0.5 * math.log(0.5 / 0.7) + 0.5 * math.log(0.5 / 0.3), 0.9 * math.log(0.9 / 0.7) + 0.1 * math.log(0.1 / 0.3)]
    assert distillation(p.log(), q.log()).item() == pytest.approx(sum(kl) / 2 + 2 * 0.4**2)


def test_calibration_by_hand_uses_the_margin_and_cross_entropy_does_not():
    s, unseen = torch.zeros(1, 3), torch.tensor([2])
    margin = margins(3, unseen)
    assert margin.tolist() == [-1, -1, 1]
    for seen_only, classes in ((False, 3), (True, 2)):
        ce, cal = classification_losses(s, torch.tensor([0]), unseen, margin, seen_only)
        assert ce.item() == pytest.approx(math.log(classes))
        assert cal.item() == pytest.approx(-math.log(math.e / (math.e + 2 / math.e)))


# ---- TransZero


def loop_bias(encoder, side):
    """(R,R) bias by a loop over pairs of cells."""
    weight, b = encoder.w_g.weight[0], encoder.w_g.bias[0]
    rows = []
    for r in range(side * side):
        row = []
        for q in range(side * side):
            dx, dy = abs(r % side - q % side), abs(r // side - q // side)
            numbers = [math.log(max(dx, 1e-3)), math.log(max(dy, 1e-3)), 0.0, 0.0]
            angles = [100 * n / 1000 ** (f / 8) for n in numbers for f in range(8)]
            waves = torch.tensor([math.sin(t) for t in angles] + [math.cos(t) for t in angles])
            G = torch.relu(weight @ waves + b)
            row.append(-G if encoder.subtract_geometry else torch.log(torch.clamp(G, min=1e-6)))
        rows.append(torch.stack(row))
    return torch.stack(rows)


def loop_encoder(encoder, u, side):
    """The encoder for one image u (R,width), attention by a loop over pairs of regions."""
    width = u.shape[1]
    bias = loop_bias(encoder, side)
    Wq, Wk, Wv = encoder.qkv.weight.chunk(3)
    bq, bk, bv = encoder.qkv.bias.chunk(3)
    out = []
    for r in range(len(u)):
        query = Wq @ u[r] + bq
        logits = [query @ (Wk @ u[q] + bk) / width**0.5 + bias[r, q] for q in range(len(u))]
        total = sum(t.exp() for t in logits)
        mixed = sum(t.exp() / total * (Wv @ u[q] + bv) for q, t in enumerate(logits))
        first = encoder.norm1(u[r] + mixed)
        out.append(encoder.norm2(first + encoder.ffn[2](torch.relu(encoder.ffn[0](first)))))
    return torch.stack(out)


def loop_decoder(decoder, vectors, t):
    """θ (R,K) and e (K,) for one image: attribute features F_i formed, one attribute after the other."""
    theta, e = [], []
    for v_i in vectors:
        query = decoder.q(v_i)
        weights = torch.stack([query @ decoder.k(t_r) / len(query) ** 0.5 for t_r in t]).softmax(dim=0)
        mixed = sum(weights[r] * decoder.v(t[r]) for r in range(len(t)))
        F_i = decoder.b(torch.relu(decoder.a(mixed)))
        theta.append(weights)
        e.append(v_i @ decoder.W @ F_i)
    return torch.stack(theta, dim=1), torch.stack(e)


@pytest.mark.parametrize("subtract", [True, False])
def test_transzero_encoder_equals_a_loop_over_pairs(space, batch, subtract):
    model = small_transzero(space, subtract_geometry=subtract).eval()
    with torch.no_grad():
        model.encoder.w_g.bias.zero_()  # closes the ReLU of some pairs
    bias = model.encoder.bias()
    closed = bias == (0 if subtract else math.log(1e-6))
    assert closed.any() and not closed.all()
    torch.testing.assert_close(bias, loop_bias(model.encoder, 3), **EXACT)
    u = model.embed(batch[0])
    expected = torch.stack([loop_encoder(model.encoder, image, 3) for image in u])
    torch.testing.assert_close(model.encoder(u), expected, **EXACT)


def test_transzero_decoder_equals_a_loop_over_attributes(space, batch):
    model = small_transzero(space).eval()
    t = model.embed(batch[0])
    theta, e = model.decoder(model.v, t)
    looped = [loop_decoder(model.decoder, model.v, image) for image in t]
    torch.testing.assert_close(theta, torch.stack([pair[0] for pair in looped]), **EXACT)
    torch.testing.assert_close(e, torch.stack([pair[1] for pair in looped]), **EXACT)


@pytest.mark.parametrize(("subtract", "seen_only"), [(False, False), (True, True)])
def test_transzero_equals_textbook_in_scores_loss_and_gradients(space, batch, subtract, seen_only):
    x, y = batch
    model = small_transzero(space, subtract_geometry=subtract, seen_only=seen_only).eval()
    encoded = [loop_encoder(model.encoder, image, 3) for image in model.embed(x)]
    e = torch.stack([loop_decoder(model.decoder, model.v, t)[1] for t in encoded])
    s = torch.stack([torch.stack([(e[b] * space.z[c]).sum() for c in range(C)]) for b in range(B)])
    torch.testing.assert_close(model.class_scores(x), s, **EXACT)
    regression = sum(((e[b] - space.z[y[b]]) ** 2).sum() for b in range(B)) / B
    expected = textbook_classification(s, y, space, 0.3, seen_only) + 0.005 * regression
    open_relus = ["encoder.w_g.bias"] if subtract else []  # -G moves as a whole with b_g where no ReLU is closed
    unmoved = ["decoder.k.bias", *open_relus]
    assert_same_loss_and_gradients(model, model.loss(x, y)["loss"], expected, unmoved)


def test_relative_geometry_depends_on_the_offset_alone():
    side = 4
    g = relative_geometry(side).view(side, side, side, side, -1)
    torch.testing.assert_close(g[0, 0, 1, 2], g[2, 1, 3, 3])
    torch.testing.assert_close(g[0, 0, 1, 2], g[1, 2, 0, 0])  # there and back
    assert (g[0, 0, 1, 2] - g[0, 0, 2, 1]).abs().max() > 0.1  # across is not down
    assert g.isfinite().all()


@pytest.mark.parametrize("side", [7, 14])
def test_transzero_takes_both_grids(space, side):
    model = small_transzero(space, side * side).eval()
    x = F.normalize(torch.randn(2, side * side, D), dim=2)
    a = model.attention(x)
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


def test_transzero_drops_out_in_training_only(space, batch):
    model = small_transzero(space)
    assert not torch.equal(model.class_scores(batch[0]), model.class_scores(batch[0]))
    model.eval()
    assert torch.equal(model.class_scores(batch[0]), model.class_scores(batch[0]))


def test_transzero_decoder_drops_the_same_channels_for_all_attributes(space, batch):
    model = small_transzero(space, dropout=0.4)
    decoder, t = model.decoder, model.embed(batch[0])
    torch.manual_seed(3)
    theta, e = decoder(model.v, t)
    torch.manual_seed(3)
    mask = F.dropout(torch.ones(B, 1, 10), 0.4)
    hidden = torch.relu(decoder.a(torch.einsum("brk,brw->bkw", theta, decoder.v(t)))) * mask
    expected = torch.einsum("kv,vw,bkw->bk", model.v, decoder.W, decoder.b(hidden))
    torch.testing.assert_close(e, expected, **EXACT)
    assert (mask == 0).any() and (mask != 0).any()


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


@pytest.mark.parametrize("name", ["msdn", "transzero"])
def test_learns_a_toy(name):
    space, x, y = toy(7)
    model = MSDN(space, 24) if name == "msdn" else TransZero(space, 24, 9, width=32, feed_forward=32, dropout=0.1)
    model.double()
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


@pytest.mark.parametrize("seen_only", [True, False])
@pytest.mark.parametrize("name", ["msdn", "transzero"])
def test_a_step_never_waits_for_a_value(space, name, seen_only):
    """Tensors of the meta device have no values: reading one on the host raises."""
    model = MSDN(space, D, seen_only=seen_only) if name == "msdn" else small_transzero(space, seen_only=seen_only)
    model.double().to("meta")
    y = torch.empty(B, dtype=torch.int64, device="meta")
    losses = model.loss(torch.empty(B, R, D, device="meta"), y)
    losses["loss"].backward()
    assert all(value.shape == () for value in losses.values())


@pytest.mark.parametrize("name", ["msdn", "transzero"])
def test_float32_is_the_default_of_use(space, name):
    torch.set_default_dtype(torch.float32)
    space = ClassSpace(space.att.float(), space.seen, space.unseen, space.w2v)
    model = MSDN(space, D) if name == "msdn" else TransZero(space, D, R)
    scores = model.class_scores(F.normalize(torch.randn(B, R, D), dim=2))
    assert scores.dtype == torch.float32
    assert model.gamma == 2.0
