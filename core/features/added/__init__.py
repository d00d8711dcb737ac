"""Backbones besides those of core/features/trunks.py and clip.py: a file here is imported below."""
