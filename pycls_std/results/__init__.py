"""From event files to tables; imports no torch."""
