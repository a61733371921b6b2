"""From the file of a table to its runs, made in order; imports no torch."""
