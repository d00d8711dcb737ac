"""Several trained models as one: the mean of their standardised scores, by attributes where all of them say.

    s_c = Σ_m w_m (s_mc - mean over classes of s_m) / spread_m        spread_m: of the training images' scores
An image's regions are those of its feature maps side by side, (B,R,D1+D2+...), each of unit length over its own
channels; members on the same features share them. An attribute of every member is one of the ensemble's.

B images · R regions · K attributes of all members together · C classes
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from core.method import AttentionOutput, ZeroShotModel


@dataclass(frozen=True, kw_only=True)
class Looks(AttentionOutput):
    """What every member found in a batch, None of one that does not look."""

    of: list[AttentionOutput | None]


class Ensemble(ZeroShotModel):
    """The mean of members that know the same classes."""

    def __init__(
        self, members: Sequence[ZeroShotModel], views: Sequence[int], widths: Sequence[int], scale: Sequence[float]
    ) -> None:
        """Args: views: which features each member reads; widths: channels of each features; scale: w_m / spread_m."""
        super().__init__()
        self.members, self.views, self.widths = nn.ModuleList(members), [*views], [*widths]
        self.scale = nn.Buffer(torch.tensor(scale, dtype=torch.float32))  # (M,)

    def _each(self, x: Tensor) -> list[tuple[ZeroShotModel, Tensor, Tensor]]:
        """Every member, its regions (B,R,Dm) and its scale."""
        views = [view.contiguous() for view in x.split(self.widths, dim=2)]
        each = zip(self.members, self.views, self.scale, strict=True)
        return [(member, views[view], scale) for member, view, scale in each]  # type: ignore[misc]

    def class_scores(self, x: Tensor) -> Tensor:
        """(B,C) for regions x (B,R,D)."""
        return torch.stack([scale * _centred(m.class_scores(own)) for m, own, scale in self._each(x)]).sum(dim=0)

    def attend(self, x: Tensor) -> Looks:
        """What the members found; ev where all of them say places."""
        of = [member.attend(own) for member, own, _ in self._each(x)]
        ev = [scale * a.ev for scale, a in zip(self.scale, of, strict=True) if a is not None and a.ev is not None]
        none = x.new_zeros(*x.shape[:2], 0)
        return Looks(theta=none, w=none[:, 0], e=None, ev=torch.cat(ev, dim=2) if len(ev) == len(of) else None, of=of)

    def evidence(self, x: Tensor, a: AttentionOutput | None) -> Tensor | None:
        """g (B,K) of all members, one behind the other."""
        assert isinstance(a, Looks)
        g = [member.evidence(own, found) for (member, own, _), found in zip(self._each(x), a.of, strict=True)]
        parts = [scale * part for scale, part in zip(self.scale, g, strict=True) if part is not None]
        return torch.cat(parts, dim=1) if len(parts) == len(g) else None

    def class_attributes(self) -> Tensor:
        """(C,K), less the mean over classes."""
        of_each = [member.class_attributes() for member in self.members]  # type: ignore[operator]
        return torch.cat([z - z.mean(dim=0) for z in of_each], dim=1)

    def corrections(self, x: Tensor, a: AttentionOutput | None) -> dict[str, Tensor]:
        """(B,C) each, those of one name added up."""
        assert isinstance(a, Looks)
        found: dict[str, Tensor] = {}
        for (member, own, scale), looked in zip(self._each(x), a.of, strict=True):
            for name, values in member.corrections(own, looked).items():
                found[name] = found.get(name, 0) + scale * _centred(values)
        return found


def _centred(scores: Tensor) -> Tensor:
    return scores - scores.mean(dim=1, keepdim=True)
