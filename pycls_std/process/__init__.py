"""The process itself: its launch, signals, streams and error messages; imports no torch."""
