"""Commands that measure something."""

import sys

# Python imports this package before the script that `python -m` names, which takes seconds.
if sys.argv[0] == "-m" and sys.stderr.isatty():
    print("loading torch and transformers ...", file=sys.stderr)
