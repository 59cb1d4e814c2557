"""A contender: the installed TRL's plain GRPOTrainer, with as many epochs over a rollout.

It has no critic, so it has less to do than PPO.
"""

import json
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

from eval.bench.iteration import Iterations, read_task, reward_of
from eval.bench.trainers import OneUpdatePerIteration, asked
from pipeline.runtime import set_threads


def main() -> None:
    iterations, task = Iterations(), read_task()
    set_threads()
    folder = Path(task["model"])
    prompts = json.loads((folder / "prompts.json").read_text())
    score = reward_of(task)
    samples = task["questions"] * task["completions"]
    done = {"samples": samples, "tokens": 0}

    def reward(
        completions: list, completion_ids: list, answer: list[str], **columns: object
    ) -> list[float]:
        earned = [score(_whole(row[0]), a) for row, a in zip(completions, answer, strict=True)]
        done["tokens"] = sum(map(len, completion_ids))
        done["reward"] = sum(earned) / len(earned)
        return earned

    tokenizer = AutoTokenizer.from_pretrained(folder)
    args = GRPOConfig(
        output_dir=task["output_dir"],
        max_steps=1_000 * task["epochs"] * task["minibatches"],
        per_device_train_batch_size=samples // task["minibatches"],
        steps_per_generation=task["minibatches"],
        num_generations=task["completions"],
        num_iterations=task["epochs"],
        max_completion_length=task["max_length"],
        learning_rate=task["learning_rate"],
        beta=task["kl_coef"],
        seed=task["seed"],
        bf16=task["dtype"] == "bfloat16",
        use_cpu=task["device"] == "cpu",
        gradient_checkpointing=False,
        logging_steps=task["epochs"] * task["minibatches"],
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = GRPOTrainer(
        AutoModelForCausalLM.from_pretrained(folder, dtype="float32"),
        reward,
        args,
        processing_class=tokenizer,
        train_dataset=asked(prompts),
    )
    iterations.timed(trainer, "_generate_single_turn", "sample")
    steps = task["epochs"] * task["minibatches"]
    trainer.add_callback(OneUpdatePerIteration(iterations, steps, lambda: done))
    trainer.train()


def _whole(message: dict[str, str]) -> str:
    """The completion as it was written: TRL takes the thought apart from the answer."""
    thought = message.get("reasoning_content")
    return message["content"] if thought is None else f"{thought}</think>{message['content']}"


if __name__ == "__main__":
    main()
