"""Layers: small modules with explicit arguments."""
