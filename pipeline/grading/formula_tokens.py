r"""Split a formula into numbers, commands, letters and signs."""

import re


class UnreadableError(ValueError):
    """A text that is not a formula, or one that can be read in two ways."""


_TOKEN = re.compile(r"\s*(\d+\.\d+|\.\d+|\d+|\\[A-Za-z]+|[A-Za-z]+|\\[{}]|[^\sA-Za-z])")
_GREEK_NAMES = """
    alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma tau
    upsilon phi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega infty ell
    hbar
"""
GREEK = frozenset(_GREEK_NAMES.split())
_FUNCTION_NAMES = """
    sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh ln log exp
"""
FUNCTIONS = frozenset(_FUNCTION_NAMES.split())


def tokens(text: str) -> list[str]:
    """Numbers, commands, letters and signs; a run of letters is a name or a product."""
    found = []
    for token in _TOKEN.findall(text):
        if token == ".":
            raise UnreadableError("a point without digits")
        if not token.isalpha():
            found.append(token)
        elif token in FUNCTIONS or token == "pi":
            found.append(rf"\{token}")
        elif len(token) > 3 or re.search("[A-Z]{2}", token):
            raise UnreadableError(f"{token} is a word")  # as a product, any order would be equal
        else:
            found.extend(token)
    return found
