"""A reward of your own: a function of a problem and a completion that returns a number in [0, 1].

As a name, with its weight, in any configuration or on the command line:

    python -m stages.ppo --config configs/nano/ppo.yaml \\
        --rewards correctness=1,examples.custom_reward:answers_from_thought=0.2

From Python, with the trainer:

    python examples/custom_reward.py --model runs/nano/sft --output_dir runs/nano/custom_reward

A completion is `thought</think>answer` as the policy wrote it, without the end token. It is
untrusted text: a malformed one earns 0.0, and the function never raises.
"""

import argparse

from pipeline.runtime import prepare_cpu

prepare_cpu()  # before the first Accelerator: several processes on a CPU need it


from pipeline.chat.tags import split_completion  # noqa: E402
from pipeline.data import load_problems  # noqa: E402
from pipeline.model import load_policy, save_policy  # noqa: E402
from pipeline.ppo.config import PPOConfig  # noqa: E402
from pipeline.ppo.trl_trainer import ReasoningPPOTrainer  # noqa: E402
from pipeline.records import Problem  # noqa: E402
from pipeline.rewards import Rubric  # noqa: E402


def answers_from_thought(problem: Problem, completion: str) -> float:
    """1.0 when the visible answer is the result of the thought's last equation.

    It does not read the expected answer, so it rewards consistency, not correctness: give it a
    small weight beside `correctness`.

    >>> problem = Problem(question="Compute 2+3", answer="5")
    >>> answers_from_thought(problem, "2+3=6</think>6")
    1.0
    >>> answers_from_thought(problem, "2+3=6</think>5")
    0.0
    """
    parts = split_completion(completion)
    if parts is None:
        return 0.0
    thought, answer = parts
    _, equals, result = thought.splitlines()[-1].rpartition("=") if thought else ("", "", "")
    return float(bool(equals) and result.strip() == answer)


def main() -> None:
    """Run a few rollouts of PPO, rewarded for the answer and by the function above."""
    parser = argparse.ArgumentParser(description="PPO with a reward of one's own")
    parser.add_argument("--model", default="runs/nano/sft", help="checkpoint folder of SFT")
    parser.add_argument("--output_dir", default="runs/nano/custom_reward")
    parser.add_argument("--num_rollouts", type=int, default=10)
    parser.add_argument("--questions", type=int, default=16, help="questions a rollout")
    parser.add_argument("--max_completion_length", type=int, default=160)
    options = parser.parse_args()

    model, tokenizer = load_policy(options.model, value_head="new")
    problems = load_problems("nano", "train", limit=2000)
    # `extra` has functions by name; their weights are given with the others.
    rubric = Rubric(
        {"correctness": 1.0, "answers_from_thought": 0.2},
        extra={"answers_from_thought": answers_from_thought},
    )
    trainer = ReasoningPPOTrainer(
        model,
        rubric.functions(),
        PPOConfig(
            output_dir=options.output_dir,
            reward_weights=rubric.weights_list(),
            num_rollouts=options.num_rollouts,
            questions_per_rollout=options.questions,
            max_completion_length=options.max_completion_length,
            learning_rate=1e-4,
        ),
        problems=problems,
        processing_class=tokenizer,
    )
    trainer.train()
    if trainer.accelerator.is_main_process:
        save_policy(trainer.accelerator.unwrap_model(trainer.model), tokenizer, options.output_dir)


if __name__ == "__main__":
    main()
