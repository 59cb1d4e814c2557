"""The command that a stage names at its end: it has all that it needs."""

import re
import shlex

from eval.run import EvalArguments
from eval.verifier import VerifierArguments
from pipeline.cli import CommandParser

ARGUMENTS = {"eval.run": EvalArguments, "eval.verifier": VerifierArguments}


def next_command(said: str) -> object:
    """The arguments of the last "next: python -m ..." in an output; an error where it would be
    refused as it stands."""
    module, arguments = re.findall(r"^next: \S*python -m (\S+) (.*)$", said, re.M)[-1]
    (parsed,) = CommandParser([ARGUMENTS[module]]).parse_args_and_config(shlex.split(arguments))
    return parsed
