"""Every method by name. A new one is a file under core/ and its name here: importing a file registers what it holds."""

from core import (  # noqa: F401
    APN,
    CADA_VAE,
    CLIP,
    CNZSL,
    DAZLE,
    ESZSL,
    GDA,
    MSDN,
    SAE,
    TF_VAEGAN,
    VSMR,
    BiasAware,
    TransZero,
    VSMR_staged,
    ranking,
)
from core import method as contract
from core.files.errors import UserError

PREPARED = "-prepared"  # ends the name of a baseline that is given vsmr's inputs


def methods() -> dict[str, contract.Registered]:
    """Every method by name, the headline first."""
    known = contract.REGISTRY
    return {name: known[name] for name in sorted(known, key=lambda n: (n != "vsmr", n.endswith(PREPARED), n))}


def find_method(name: str) -> contract.Registered:
    known = methods()
    if name not in known:
        raise UserError(f"no method {name!r}; there are {', '.join(known)}")
    return known[name]
