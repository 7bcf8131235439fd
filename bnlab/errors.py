"""The one error that bnlab raises for what a person gave it: data, flags, folders."""


class InputError(ValueError):
    """Something given to bnlab cannot be used; the message says what, what would be right, and what to do next.

    The command line prints the message alone and exits with status 2; Python callers may catch it as a ValueError.
    """
