"""The one exception a user can do something about."""


class InputError(ValueError):
    """The input is unusable as it stands.

    The message is one sentence that says what is wrong, where, and what to do. The command line prints it
    on standard error and exits with code 2.
    """
