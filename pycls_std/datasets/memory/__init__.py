"""Images held in memory and augmented in batches on the device."""


class NotInMemory(ValueError):
    """What is wanted cannot be had of images in memory; the text says why."""
