"""One process of the benchmark of shared evaluations (`python -m eval.bench shared_eval`).

    RANK=0 WORLD_SIZE=2 ... python -m eval.bench.evaluating FOLDER

It loads the model once, then evaluates again whenever the file `begin-I` appears in its FOLDER, and
writes `ended-I-RANK.json` with its processor time. `end` ends it.
"""

import json
import sys
import time
from itertools import count
from pathlib import Path

from eval.run import evaluate_checkpoint
from pipeline.hosts import this_place
from pipeline.model import load_for_inference
from pipeline.records import Problem
from pipeline.runtime import set_threads, terminate_with_launcher, write_json
from pipeline.search import SearchOptions

SECONDS_BETWEEN_LOOKS = 0.01


def main(folder: Path) -> None:
    """Evaluate as often as the benchmark asks for it."""
    terminate_with_launcher()
    task = json.loads((folder / "task.json").read_text())
    set_threads(task["threads"])
    model, tokenizer = load_for_inference(task["model"])
    prompts = json.loads((Path(task["model"]) / "prompts.json").read_text())
    rows = zip(prompts["questions"], prompts["answers"], strict=True)
    problems = [Problem(question=question, answer=answer) for question, answer in rows]
    options = SearchOptions(**task["options"])
    rank = this_place().rank
    (folder / f"ready-{rank}").touch()
    for iteration in count():
        while not (folder / f"begin-{iteration}").exists():
            if (folder / "end").exists():
                return
            time.sleep(SECONDS_BETWEEN_LOOKS)
        start = time.process_time()
        out = folder / str(iteration)
        evaluate_checkpoint(model, tokenizer, problems, task["strategy"], options, out)
        write_json(
            folder / f"ended-{iteration}-{rank}.json", {"cpu_s": time.process_time() - start}
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
