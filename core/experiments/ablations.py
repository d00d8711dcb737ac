"""The ablation of vsmr: what is left out or replaced, one thing at a time."""

from typing import Any

WHOLE = "vsmr"  # the name of the row that all others are compared with

# name in the table -> what changes in the recipe of vsmr
ABLATIONS: dict[str, dict[str, Any]] = {
    WHOLE: {},
    "no training at all (epoch 0)": {"epochs": 0},
    "without CE(s1)": {"loss_semantic": False},
    "without CE(s2)": {"loss_visual": False},
    "ρ is the plain mean": {"mean_share": 1.0},
    "score s1 alone (β = 0)": {"beta": 0.0},
    "score s2 alone (β = 1000)": {"beta": 1000.0},
    "W1 starts at N(0,1)": {"closed_start": False},
    "W2 starts at 0": {"sharpness": 0.0},
    "E linear (no kernel, ridge 0.3)": {"kernel_width": None, "ridge": 0.3},
    "E by gradient": {"ridge_encoder": False},
    "no hubness": {"hubness": 0.0},
    "no seen expert": {"seen_expert": 0.0},
    "no whitening": {"whiten": False},
    "no root of features": {"root_features": False},
    "no root of attributes": {"root_attributes": False},
    "attributes not centred": {"centre_attributes": False},
}
