# SPDX-License-Identifier: Apache-2.0
"""The exception for mistakes a user can mend; the command line prints it as one line and exits with code 2."""


class UserError(ValueError):
    """What was expected, what was found (file, band, key, value), and the way out, in one line.

    Attributes:
        exit_code: of the command line; a kind of its own where a script may want to tell it apart.
    """

    exit_code: int = 2
