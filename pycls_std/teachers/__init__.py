"""Teachers: one of them, how it is made fast, and what they say of a batch, live or kept."""
