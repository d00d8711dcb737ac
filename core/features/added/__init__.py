"""Backbones of one's own: every file here registers one with ``@build`` (docs/adding.md)."""
