"""The ablation of vsmr: what is left out or replaced, one thing at a time."""

from typing import Any

WHOLE = "vsmr"  # the name of the row that all others are compared with

# name in the table -> what changes in the recipe of vsmr
ABLATIONS: dict[str, dict[str, Any]] = {
    WHOLE: {},
    "looks everywhere alike (plain mean)": {"sharpness": 0.0},
    "no attention of an attribute's own": {"own": 0.0},
    "each attribute's own attention alone": {"own": 1.0},
    "no hubness": {"hubness": 0.0},
    "no seen expert": {"seen_expert": 0.0},
    "no whitening": {"shrinkage": 1e12},
    "no root of features": {"root_features": False},
    "no root of attributes": {"root_attributes": False},
    "no questions": {"questions": False},
}
