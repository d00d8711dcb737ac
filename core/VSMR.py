"""VSMR, one additive model in closed form: every point of a score is a named attribute at a place. Method ``vsmr``.

The parts are those of Zhang, Chen, Yu and Hu (J. Electron. Imaging 33(5) 053041, 2024): region weights, attribute
scores, visual class prototypes, an encoder of attributes into visual space. The two directions are one bilinear form W
here, read from attributes to what is seen, and from what is seen back to attributes. W has a closed form, and nothing
is learned by gradient: this is DAZLE's form (core/attention.py) with W1 and W2 solved instead of learned.

How to read it. x_r unit regions, z̃ prepared class attributes (core/preparation.py), M_s the mean of f of seen class s:
    θ_ri  = softmax over r of (sharpness Σ_k A_ik P_k x_r)      where attribute i can be read, the same for all answers
                                                                to one question (core/closed_forms.py)
    ρ_r   = ½/R + ½ mean_i θ_ri                                 where attributes are looked for on the whole
    g     = Σ_r ρ_r x_r √D / |Σ_r ρ_r x_r|                      pooled feature
    n     = 1 / (√(|g| + ε) + √ε)                               gain of each channel in this image: n∘g is the root of g
    f     = P (n∘g - μ)                                         image feature in whitened space
    W     = (Z̃ᵀZ̃ + λI)⁻¹ Z̃ᵀ M                                  what attribute i looks like, from the seen classes
    t_ri  = (1 - own) ρ_r + own θ_ri
    ev_ri = 100 t_ri W_i · P (n∘x_r √D / |Σ ρ x| - μ) / |f|     evidence: what region r says of attribute i, in points
    s_c   = Σ_i z̃_ci Σ_r ev_ri / |W z̃_c|  -  100 h max_s cos(M_s, W z̃_c)  +  100 κ l_c
With own = 0 the first term is 100 cos(f, W z̃_c) exactly. The gains make the root of pooled features a sum over regions:
a channel that is strong anywhere in the image counts less everywhere in it (divisive normalisation).
The last two are corrections. h, hubness: a prototype close to a mean of training images is close to many an image, so
it is chosen too often (M. Radovanović et al., JMLR 2010; in zero-shot, G. Dinu et al., ICLR 2015). κ, seen expert: for
seen classes alone, l is a linear discriminant of f (within-class covariance, shrunk), standardised over the seen
classes: it has their images where W has their attributes only.

B images · R regions · D channels · K attributes, answers to G questions · C classes (S seen) · d width of P
"""

from dataclasses import dataclass
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.closed_forms import readable_regions, shrunk
from core.method import AttentionOutput, ClassSpace, Images, Method, ZeroShotModel, hp, method, with_settings
from core.preparation import SMALL, ClassEncoder, prepared_attributes, shrunk_whitening

POINTS = 100.0  # of a cosine of 1
# What validation chooses among. From few classes it cannot be told where to look; and the root, which spreads out small
# percentages, also spreads out the noise of attributes that a class lacks.
CHOICES = {"sharpness": (30.0, 5.0), "root_attributes": (True, False)}
_EXPERT_SHRINKAGE = 0.3  # of the within-class covariance towards its mean diagonal


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Every number and switch of ``vsmr``, one setting for all data sets."""

    sharpness: float | None = hp(
        None, "of the attention; 0 looks everywhere alike; none: validation chooses", at_least=0
    )
    own: float = hp(0.3, "share of an attribute's own attention; the rest is the saliency ρ", at_least=0, at_most=1)
    mean_share: float = hp(0.5, "share of the plain mean in ρ", at_least=0, at_most=1)
    ridge: float = hp(0.8, "penalty λ of W, in mean eigenvalues", above=0)
    hubness: float = hp(0.1, "share h of hubness taken from a class", at_least=0)
    seen_expert: float = hp(0.025, "share κ of the discriminant of seen classes in their scores", at_least=0)
    width: int = hp(512, "width of the whitened visual space", at_least=1)
    shrinkage: float = hp(10.0, "shrinkage r of the whitening, in mean eigenvalues; large only rotates", above=0)
    root_attributes: bool | None = hp(None, "square root of class attributes; none: validation chooses")
    questions: bool = hp(True, "answers to one question as shares of it, looked for in one place (ablation switch)")
    root_features: bool = hp(True, "root of pooled features, by the gains n (ablation switch)")


@dataclass(frozen=True, kw_only=True)
class Looked(AttentionOutput):
    """What an image says: ``ev`` and its sum over regions ``e`` in points over |W z̃|, and f."""

    f: Tensor  # (B,d)


class VSMR(ZeroShotModel):
    """The closed form; :meth:`fit` takes everything from the training images."""

    def __init__(self, space: ClassSpace, D: int, recipe: Recipe) -> None:
        super().__init__()
        self.space = space
        self.recipe = with_settings(recipe, {k: v[0] for k, v in CHOICES.items() if getattr(recipe, k) is None})
        C, K, S, d = len(space.att), space.att.shape[1], len(space.seen), min(recipe.width, D)
        z = self._prepared(bool(self.recipe.root_attributes))
        self.z = nn.Buffer(z)  # (C,K)
        self.seen = nn.Buffer(space.seen)
        self.seen_index = nn.Buffer(space.seen_index)  # (C,) place of a seen class among the seen
        self.sharpness = nn.Buffer(z.new_tensor(self.recipe.sharpness))
        number, questions = torch.arange(K, device=z.device), self._questions()
        if questions is not None:
            number = torch.where(questions < 0, number + K, questions)  # one that stands alone is its own question
        self.asked = nn.Buffer(number.unique(return_inverse=True)[1], persistent=False)  # (K,) question, 0 to G-1
        self.answers = nn.Buffer(torch.bincount(self.asked).to(z), persistent=False)  # (G,) how many a question has
        self.looks = nn.Buffer(z.new_zeros(len(self.answers), D))  # (G,D) A P
        self.mu = nn.Buffer(z.new_zeros(D))
        self.P = nn.Buffer(z.new_zeros(d, D))
        self.W = nn.Buffer(z.new_zeros(K, d))
        self.means = nn.Buffer(z.new_zeros(S, d))  # M
        self.length = nn.Buffer(z.new_ones(C))  # |W z̃|
        self.hub = nn.Buffer(z.new_zeros(C))  # cosine of a prototype with the nearest seen mean
        self.expert = nn.Buffer(z.new_zeros(S, d))  # the discriminant of seen classes,
        self.expert_bias = nn.Buffer(z.new_zeros(S))  # and its constant

    @torch.no_grad()
    def fit(self, images: Images) -> None:
        """Where attributes can be read, and all that rests on it."""
        z = self._prepared()[self.space.seen].to(self.z)
        self.looks.copy_(readable_regions(images, self.seen_index, z, self.asked))
        self.refit(images)

    @torch.no_grad()
    def refit(self, images: Images) -> None:
        """All that rests on where it looks: one pass over the images."""
        r, index = self.recipe, self.seen_index[images.labels]
        phi = torch.cat([self._rooted(x)[0] for x, _ in images.blocks()])  # (N,D)
        self.mu.copy_(phi.mean(dim=0))
        phi -= self.mu
        self.P.copy_(shrunk_whitening(phi, len(self.P), r.shrinkage))
        f = phi @ self.P.T  # (N,d)
        counts = torch.bincount(index, minlength=len(self.seen)).to(f)
        self.means.copy_(torch.zeros_like(self.means).index_add_(0, index, f) / counts.clamp_min(1).unsqueeze(1))
        within = (f.T @ f - (self.means * counts.unsqueeze(1)).T @ self.means).double() / counts.sum()  # (d,d)
        self.expert.copy_(torch.linalg.solve(shrunk(within, _EXPERT_SHRINKAGE), self.means.T.double()).T)
        self.expert_bias.copy_(-0.5 * (self.means * self.expert).sum(dim=1))
        self.solve()

    @torch.no_grad()
    def solve(self) -> None:
        """All that rests on the attributes: W, from the means of the seen classes."""
        self.z.copy_(self._prepared(bool(self.recipe.root_attributes)))
        Z = self.z[self.seen].double()
        S, K = Z.shape  # rows of Z have unit length: the eigenvalues of ZᵀZ sum to S
        penalty = self.recipe.ridge * S / min(S, K) * torch.eye(K, dtype=Z.dtype, device=Z.device)
        self.W.copy_(torch.linalg.solve(Z.T @ Z + penalty, Z.T @ self.means.double()))
        self.describe_classes(torch.arange(len(self.z), device=Z.device))

    def _prepared(self, root: bool = True) -> Tensor:
        """z̃ (C,K); where it looks does not depend on the root that validation chooses."""
        return prepared_attributes(self.space.att, self.space.seen, root=root, questions=self._questions())

    def _questions(self) -> Tensor | None:
        return self.space.questions if self.recipe.questions else None

    @torch.no_grad()
    def describe_classes(self, classes: Tensor) -> None:
        """Length and hubness of the prototypes W z̃ of classes (A,)."""
        prototypes = self.z[classes] @ self.W  # (A,d)
        self.length[classes] = prototypes.norm(dim=1).clamp_min(1e-12)
        cosines = F.normalize(prototypes, dim=1) @ F.normalize(self.means, dim=1).T  # (A,S)
        self.hub[classes] = cosines.amax(dim=1)

    def _rooted(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """n∘g (B,D), the channels' gains n √D / |Σ ρ x| (B,D), θ (B,R,G) and ρ (B,R) of regions x (B,R,D)."""
        B, R, D = x.shape
        theta = (self.sharpness * (x.reshape(B * R, D) @ self.looks.T).view(B, R, -1)).softmax(dim=1)
        share = self.recipe.mean_share
        rho = share / R + (1 - share) * theta @ (self.answers / self.answers.sum()).to(theta)
        g = torch.bmm(rho.unsqueeze(1), x).squeeze(1)  # (B,D), not yet of length √D
        gains = D**0.5 / g.norm(dim=1, keepdim=True).clamp_min(1e-12)
        if self.recipe.root_features:
            gains = gains / (((g * gains).abs() + SMALL).sqrt() + SMALL**0.5)
        else:
            gains = (gains / D**0.5).expand_as(g)
        return gains * g, gains, theta, rho

    def attend(self, x: Tensor) -> Looked:
        """θ and the evidence of regions x (B,R,D)."""
        B, R, D = x.shape
        rooted, gains, theta, rho = self._rooted(x)
        theta = theta[:, :, self.asked]  # (B,R,K)
        f = (rooted - self.mu) @ self.P.T  # (B,d)
        queries = self.W @ self.P  # (K,D)
        says = ((x * gains.unsqueeze(1)).reshape(B * R, D) @ queries.T).view(B, R, -1) - queries @ self.mu
        t = (1 - self.recipe.own) * rho.unsqueeze(2) + self.recipe.own * theta
        ev = t * says * (POINTS / f.norm(dim=1).clamp_min(1e-12))[:, None, None]  # (B,R,K)
        return Looked(theta=theta, w=torch.ones_like(ev[:, 0]), e=ev.sum(dim=1), ev=ev, f=f)

    def evidence(self, x: Tensor, a: AttentionOutput | None) -> Tensor:
        """Σ_r ev (B,K)."""
        assert a is not None and a.e is not None
        return a.e

    def class_attributes(self) -> Tensor:
        """z̃ over the length of the class's prototype (C,K)."""
        return self.z / self.length.unsqueeze(1)

    def likeness(self, a: AttentionOutput | None) -> Tensor:
        """Unit f in points (B,d)."""
        assert isinstance(a, Looked)
        return POINTS * F.normalize(a.f, dim=1)

    def corrections(self, x: Tensor, a: AttentionOutput | None) -> dict[str, Tensor]:
        """Hubness and seen expert, (B,C) each, in points."""
        assert isinstance(a, Looked)
        logits = a.f @ self.expert.T + self.expert_bias  # (B,S)
        logits = logits - logits.mean(dim=1, keepdim=True)
        logits = logits / logits.square().mean(dim=1, keepdim=True).sqrt().clamp_min(1e-12)
        of_seen = F.pad(logits, (0, 1))[:, self.seen_index]  # (B,C); the last column serves the unseen
        hubness = -self.recipe.hubness * self.hub.expand(logits.shape[0], -1)
        return {"hubness": POINTS * hubness, "seen expert": POINTS * self.recipe.seen_expert * of_seen}

    def class_scores(self, x: Tensor) -> Tensor:
        """(B,C) points for regions x (B,R,D)."""
        a = self.attend(x)
        return self.evidence(x, a) @ self.class_attributes().T + sum(self.corrections(x, a).values())

    def class_encoder(self, space: ClassSpace) -> ClassEncoder:
        """What makes the attributes and the hubness of a class from its description."""
        return ClassEncoder.of(
            space.att,
            space.seen,
            root=bool(self.recipe.root_attributes),
            centre=True,
            questions=self._questions(),
            W=self.W,
            means=F.normalize(self.means, dim=1),
            hubness=POINTS * self.recipe.hubness,
        )


@method("vsmr", recipes={"*": Recipe()})
def build(recipe: Recipe, space: ClassSpace, shape: tuple[int, int], seed: int, epochs: int) -> Method:
    model = VSMR(space, shape[1], recipe)
    offered = {name: values for name, values in CHOICES.items() if getattr(recipe, name) is None}
    fitted: list[Images] = []

    def begin(images: Images) -> None:
        fitted[:] = [images]
        model.fit(images)

    def set_params(setting: dict[str, float]) -> None:
        model.recipe = with_settings(model.recipe, setting)
        if model.recipe.sharpness == float(model.sharpness):
            model.solve()
        else:
            model.sharpness.fill_(model.recipe.sharpness)
            model.refit(fitted[0])

    grid = tuple(dict(zip(offered, values, strict=True)) for values in product(*offered.values())) if offered else ()
    return Method(model=model, phases=[], begin=begin, grid=grid, set_params=set_params)
