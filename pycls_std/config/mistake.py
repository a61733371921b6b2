"""What a user's mistake in the options raises."""


class ConfigError(ValueError):
    """A mistake in a config file or on the command line; its text is one line that names key, place and values."""
