"""Errors that are the user's to mend: the CLI prints their message as one line and exits with code 2."""


class ConfigError(Exception):
    """What is wrong, where (file and key), and what would be right, in one line.

    `key` is the configuration key that is to blame, where there is one: the CLI adds the file it is in.
    """

    def __init__(self, message: str, key: str = "") -> None:
        super().__init__(message.replace("\n", "\\n").replace("\r", "\\r"))  # as where it shows a prompt
        self.key = key


class RunError(Exception):
    """A run cannot go on for a reason that is no defect of ours, e.g. too many checks timed out. Exit code 1."""


class Stopped(BaseException):
    """SIGINT or SIGTERM: what is on disk stays, and the run's status becomes `stopped`."""
