"""Export a trained student in formats that other programs load."""
