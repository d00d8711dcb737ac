"""Every method. A new one is a file under core/ and its name here: importing a file registers what it holds."""

from core import CLIP, DAZLE, ESZSL, MSDN, VSMR, TransZero, VSMR_staged  # noqa: F401
