"""Commands that produce something."""

import os
import sys

# Python imports this package before the script that `python -m` names, which takes seconds.
if sys.argv[0] == "-m":
    if sys.stderr.isatty():
        print("loading torch and transformers ...", file=sys.stderr)
    else:  # the bars of the libraries would fill a file with carriage returns
        for library in ("HF_HUB", "HF_DATASETS"):
            os.environ.setdefault(f"{library}_DISABLE_PROGRESS_BARS", "1")
