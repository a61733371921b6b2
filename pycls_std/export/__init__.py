"""A trained student as other programs load it."""
