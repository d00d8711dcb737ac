"""Backbones besides those of core/features/trunks.py and clip.py: a file here is imported below."""

from core.features.added import efficientnet_lite  # noqa: F401
