"""A fresh clone in which the commands of the docs are run, with small configurations and data."""

import gzip
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

import yaml

from tests.conftest import ROOT
from tests.doc_rules import NANO, SHORTER, SUITES, Rule

SECONDS = 900  # of one command; the slowest takes two minutes on one idle core


def clone_tree(folder: Path) -> None:
    """Clone the last commit, with the files of this tree that differ from it, into `folder`, and
    give it an environment."""
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
    changed = ["git", "-C", str(ROOT), "ls-files", "--modified", "--others", "--exclude-standard"]
    for name in subprocess.run(changed, capture_output=True, text=True, check=True).stdout.split():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    make_environment(folder)


def make_clone(folder: Path) -> None:
    """A clone in `folder` with small configurations, data and the files that the docs show."""
    clone_tree(folder)
    for path in (folder / "configs").glob("*/*.yaml"):
        if smaller_values(path) and path.parent.name != "small":
            shorten(path)
    write_data(folder / "data")
    if own := os.environ.get("THINKHEAD_DATA"):
        (folder / SUITES).symlink_to(Path(own).absolute())
    write_files(folder)


def make_environment(folder: Path) -> None:
    """`.venv` as `make venv` makes it, with the packages of the running Python.

    The path of these packages stands in a .pth file, and their own .pth files are not read: the
    clone is imported, not the tree that is installed.
    """
    venv = folder / ".venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    packages = sysconfig.get_path("purelib")
    inside = next(venv.glob("lib/python*/site-packages"))
    (inside / "clone.pth").write_text(f"{folder}\n{packages}\n")
    for script in Path(sysconfig.get_path("scripts")).iterdir():
        if script.is_symlink() or not script.is_file() or (venv / "bin" / script.name).exists():
            continue
        content = script.read_bytes()
        if content.startswith(b"#!") and b"python" in content.partition(b"\n")[0]:
            content = f"#!{venv}/bin/python\n".encode() + content.partition(b"\n")[2]
        (venv / "bin" / script.name).write_bytes(content)
        (venv / "bin" / script.name).chmod(0o755)
    (venv / ".installed").touch()


def smaller_values(path: Path) -> dict:
    """The values of SHORTER for a configuration, by its folder and name or by its name; else {}."""
    return SHORTER.get(f"{path.parent.name}/{path.name}") or SHORTER.get(path.name, {})


def shorten(path: Path) -> None:
    """Replace the sizes in a configuration by those of SHORTER."""
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    smaller = smaller_values(path)
    if config.get("model") != "nano":
        smaller = {name: value for name, value in smaller.items() if name not in NANO}
    if path.parent.name == "smol":
        smaller = smaller | {"num_rollouts": 1} if path.name == "ppo.yaml" else smaller
    path.write_text(yaml.safe_dump(config | smaller), encoding="utf-8")


def write_data(root: Path) -> None:
    """Data sets of a few rows, in the layout and with the fields of a data root."""
    sums = [(a, b) for a in range(3, 9) for b in range(12, 16)]
    words = [f"Ann has {a} pens and buys {b}. How many pens has she now?" for a, b in sums]
    gsm8k = [
        {"question": q, "answer": f"She has {a}+{b} = <<{a}+{b}={a + b}>>{a + b}.\n#### {a + b}"}
        for q, (a, b) in zip(words, sums, strict=True)
    ]
    mathematics = [
        {
            "problem": f"Compute ${a}\\cdot {b}$.",
            "solution": f"We have ${a}\\cdot {b}=\\boxed{{{a * b}}}$.",
            "answer": str(a * b),
            "level": "Level 1",
            "type": "Prealgebra",
            "subject": "Prealgebra",
            "unique_id": f"{a}-{b}",
        }
        for a, b in sums
    ]
    choices = [
        {
            "id": f"{a}-{b}",
            "question": f"Which number is {a} more than {b}?",
            "choices": {"text": [str(a + b), str(b - a)], "label": ["A", "B"]},
            "answerKey": "A",
        }
        for a, b in sums
    ]
    asdiv = [
        {
            "id": f"{a}-{b}",
            "grade": "1",
            "source": "none",
            "body": f"{a} red and {b} green {what} are in the basket.",
            "question": f"How many {what} are in the basket?",
            "solution_type": "Addition",
            "answer": f"{a + b} ({what})",
            "formula": f"{a}+{b}={a + b}",
        }
        for (a, b), what in zip(sums, _plurals(), strict=True)
    ]
    multiarith = [
        {
            "question": f"Bob had {b} {what} and gave {a} away. How many are left?",
            "final_ans": str(b - a),
            "equation": f"X=({b}.0-{a}.0)",
        }
        for (a, b), what in zip(sums, _plurals(), strict=True)
    ]
    program = {
        "task_id": "HumanEval/0",
        "prompt": 'def double(x: int) -> int:\n    """Return twice x."""\n',
        "entry_point": "double",
        "canonical_solution": "    return 2 * x\n",
        "test": "def check(candidate):\n    assert candidate(2) == 4\n",
    }
    mbpp = {
        "task_id": 11,
        "text": "Write a function that doubles a number.",
        "code": "def double(x):\n    return 2 * x\n",
        "test_list": ["assert double(2) == 4", "assert double(0) == 0"],
        "test_setup_code": "",
        "challenge_test_list": [],
    }
    for name, rows in {
        "gsm8k/train": gsm8k[:16],
        "gsm8k/test": gsm8k[16:],
        "math/train": mathematics[:16],
        "math/test": mathematics[16:],
        "math500/test": mathematics[16:],
        "arc_challenge/train": choices[:16],
        "arc_challenge/test": choices[16:],
        "asdiv/all": asdiv,
        "multiarith/all": multiarith,
        "humaneval/test": [program],
        "mbpp/test": [mbpp],
    }.items():
        path = root / f"{name}.jsonl.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        with gzip.open(path, "wt", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)


def _plurals() -> list[str]:
    """24 words, so that the questions of a divided data set fall into both parts."""
    return [
        *(
            [
                "apples",
                "pears",
                "plums",
                "figs",
                "dates",
                "limes",
                "nuts",
                "leaves",
                "stones",
                "shells",
                "coins",
                "cards",
            ]
        ),
        *(
            [
                "books",
                "pens",
                "cups",
                "plates",
                "spoons",
                "forks",
                "balls",
                "kites",
                "bells",
                "rings",
                "ropes",
                "boxes",
            ]
        ),
    ]


def write_files(folder: Path) -> None:
    """What a reader has written before the commands: the files that README and docs show."""
    readme = (folder / "README.md").read_text(encoding="utf-8")
    rows = re.search(r"```json\n(.*?)```", readme, flags=re.S)
    reward = re.search(r"```python\n(.*?# my_rewards\.py.*?)```", readme, flags=re.S)
    assert rows and reward
    (folder / "mine.jsonl").write_text(rows[1])
    (folder / "my_rewards.py").write_text(reward[1])
    (folder / "notes.txt").write_text("\n\n".join(f"Note {n}: {n} and {n}." for n in range(200)))
    verdicts = [{"rating": 1000 + 100 * n, "verdicts": [n < 4]} for n in range(8)]
    (folder / "verdicts.jsonl").write_text("".join(json.dumps(v) + "\n" for v in verdicts))


def run_in(folder: Path, command: str, rule: Rule) -> tuple[int, str]:
    """(exit status, output) of a command in a bare shell; `make` needs no active environment."""
    activate = "" if command.startswith("make ") else "source .venv/bin/activate && "
    environment = {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "HOME": str(folder / "home"),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
        "HF_HUB_OFFLINE": "1",  # a command that would need the Hub fails at once
        **rule.environment,
    }
    (folder / "home").mkdir(exist_ok=True)
    process = subprocess.Popen(
        ["bash", "-c", activate + command],
        cwd=folder,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(rule.typed, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        return -1, f"{output}\nstopped after {SECONDS} s"
    return process.returncode, output
