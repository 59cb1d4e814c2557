"""The command line of eval: YAML and flags into dataclasses, a mistake in one line."""

from typing import NoReturn

from trl import TrlParser


class CommandParser(TrlParser):
    """TrlParser whose complaints about flags are ValueErrors, like every other mistake of a user.

    argparse prints the whole usage before its message.
    """

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}: --help lists the arguments")
