"""The edge: options in, explicit keyword arguments for everything below."""
