"""Teachers: the frozen models, their optimization for speed, and their outputs, computed live or cached."""
