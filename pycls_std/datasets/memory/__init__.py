"""Images held in memory and augmented in batches on the device."""


class NotInMemory(ValueError):
    """Raised if images cannot be held in memory; the text says why."""
