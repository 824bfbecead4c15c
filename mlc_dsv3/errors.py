"""What a user can cause: one line that says what, where and what to do. The command line exits with 2 on it."""

import sys

from relax_model.errors import ConfigError


class UserError(Exception):
    """A user's mistake or a broken file; its text is shown as it is, without a traceback."""


USER_ERRORS = (UserError, ConfigError)


def warn(text: str) -> None:
    """Tell the user, in one line on standard error, of something that does not stop the work."""
    print(f"mlc_dsv3: warning: {' '.join(text.split())}", file=sys.stderr)
