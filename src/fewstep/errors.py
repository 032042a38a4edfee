"""The error that the user can mend: its message says what was expected and what to do."""


class UserError(ValueError):
    """Bad input at a public boundary: file, flag, recipe or argument.

    The command line prints its message on one line and exits with status 1; every other exception is a defect of ours
    and keeps its traceback.
    """
