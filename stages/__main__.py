"""The command `thinkhead`: every script of the project by name.

`thinkhead ppo --config nano/ppo.yaml` is `python -m stages.ppo --config nano/ppo.yaml`. A script is
imported when it is run, so that the list of commands comes at once.
"""

import ast
import runpy
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from pipeline.runtime import one_line_errors

ROOT = Path(__file__).parents[1]
COMMANDS = {
    "data": "stages.data",
    "pretrain": "stages.pretrain",
    "distill": "stages.distill",
    "sft": "stages.sft",
    "ppo": "stages.ppo",
    "rft": "stages.rft",
    "verifier": "stages.verifier",
    "merge": "stages.merge",
    "recipe": "stages.recipe",
    "infer": "stages.infer",
    "chat": "stages.chat",
    "serve": "stages.serve",
    "publish": "stages.publish",
    "eval": "eval.run",
    "suites": "eval.suites",
    "compare": "eval.compare",
    "samples": "eval.samples",
    "seeds": "eval.seeds",
    "scaling": "eval.scaling",
    "pareto": "eval.pareto",
    "ablate": "eval.ablate",
    "report_page": "eval.report_page.page",
    "eval_verifier": "eval.verifier",
    "codeforces": "eval.codeforces",
    "contest": "eval.contest",
    "bias": "eval.bias",
    "plan": "eval.plan",
    "harness": "eval.harness",
    "agreement": "eval.harness.agreement",
    "table_b1": "eval.harness.table_b1",
    "bench": "eval.bench",
    "kill_test": "eval.bench.kill_test",
    "tags": "eval.bench.tags",
}


@one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    """Run the script that the first argument names; without one, list them."""
    name, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help", "help"):
        print(overview())
        return
    if name not in COMMANDS:
        close = get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {close[0]}?" if close else "`thinkhead` lists them"
        raise ValueError(f"{name!r} is no command; {hint}")
    if sys.stderr.isatty():
        print("loading torch and transformers ...", file=sys.stderr)
    sys.argv = [name, *rest]
    runpy.run_module(COMMANDS[name], run_name="__main__", alter_sys=True)


def overview() -> str:
    """The commands, a line each; `thinkhead NAME --help` has the rest."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {_purpose(module)}" for name, module in COMMANDS.items()]
    return "\n".join(["thinkhead NAME [arguments]; `thinkhead NAME --help` lists them", "", *lines])


def _purpose(module: str) -> str:
    """First line of the docstring of a script, read without an import."""
    path = ROOT.joinpath(*module.split("."))
    source = path / "__main__.py" if path.is_dir() else path.with_suffix(".py")
    text = ast.get_docstring(ast.parse(source.read_text(encoding="utf-8"))) or ""
    return text.partition("\n")[0]


if __name__ == "__main__":
    main()
