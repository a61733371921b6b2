"""Small modules with explicit arguments."""
