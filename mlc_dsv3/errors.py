"""What a user can cause: one line that says what, where and what to do. The command line exits with 2 on it."""

from relax_model.errors import ConfigError


class UserError(Exception):
    """A user's mistake or a broken file; its text is shown as it is, without a traceback."""


USER_ERRORS = (UserError, ConfigError)
