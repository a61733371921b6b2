"""The process itself: how it was started, how it is stopped, how it complains; imports no torch."""
