"""What is left out of vsmr, one ingredient at a time, to see what it is worth."""

from __future__ import annotations

from typing import Any

ABLATIONS: dict[str, dict[str, Any]] = {
    "vsmr": {},
    "no training at all (epoch 0)": {"epochs": 0},
    "without CE(s1)": {"loss_semantic": False},
    "without CE(s2)": {"loss_visual": False},
    "ρ is the plain mean": {"mean_share": 1.0},
    "score s1 alone (β = 0)": {"beta": 0.0},
    "score s2 alone (β = 1000)": {"beta": 1000.0},
    "W1 starts at N(0,1)": {"closed_start": False},
    "E by gradient": {"ridge_encoder": False},
    "no whitening": {"whiten": False},
    "no root of features": {"root_features": False},
    "no root of attributes": {"root_attributes": False},
    "attributes not centred": {"centre_attributes": False},
}
