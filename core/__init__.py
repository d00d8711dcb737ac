"""Zero-shot image recognition: DAZLE attention and VSMR on frozen region features."""

__version__ = "0.1.0"
