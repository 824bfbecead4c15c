"""The error a user's configuration can cause; the command line prints it as one line."""


class ConfigError(ValueError):
    """A configuration value that is unknown, missing, out of range or contradicts another."""
