"""The measured code of reference implementations: `reference.py WORKLOAD TASK.json`.

`trl_ppo` runs in an environment with TRL 1.12.0 (`make peer`), in which this project is not
installed: it and the top of this file import nothing from `pipeline`.
"""

import gc
from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

from eval.bench.measure import (
    Iterations,
    Task,
    read_prompts,
    reward_of,
    run_workload,
    save_at_stop,
    update_callback,
)


def trl_ppo(iterations: Iterations, task: Task) -> None:
    """TRL 1.12.0's PPOTrainer (trl.experimental.ppo), which later releases dropped.

    Modes: "shipped", unchanged; "nogc", without its two calls of gc.collect() per update.
    """
    import torch
    from datasets import Dataset
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        AutoTokenizer,
    )
    from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

    folder = task["model"]
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    policy, reference = (
        AutoModelForCausalLM.from_pretrained(folder, dtype="float32") for _ in range(2)
    )
    value = AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=1, dtype="float32"
    )
    samples = task["questions"] * task["completions"]
    prompts = read_prompts(task)
    answers = dict(zip(map(tuple, prompts["ids"]), prompts["answers"], strict=True))
    reward_model = torch.nn.Identity()  # replaced by the reward function in get_reward_or_value
    trainer = PPOTrainer(
        args=PPOConfig(
            output_dir=task["output_dir"],
            total_episodes=samples * 1_000,
            per_device_train_batch_size=samples,
            gradient_accumulation_steps=1,
            num_mini_batches=task["minibatches"],
            num_ppo_epochs=task["epochs"],
            response_length=task["max_length"],
            temperature=1.0,
            stop_token="eos",
            learning_rate=task["learning_rate"],
            kl_coef=task["kl_coef"],
            num_sample_generations=0,
            seed=task["seed"],
            bf16=task["dtype"] == "bfloat16",
            use_cpu=task["device"] == "cpu",
            gradient_checkpointing=False,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
        ),
        processing_class=tokenizer,
        model=policy,
        ref_model=reference,
        reward_model=reward_model,
        value_model=value,
        train_dataset=Dataset.from_dict(
            {"input_ids": [ids for ids in prompts["ids"] for _ in range(task["completions"])]}
        ),
    )
    truncate, get_reward = ppo_trainer.truncate_response, ppo_trainer.get_reward
    reward = reward_of(task)
    tokens: list[int] = []
    rewards: list[float] = []

    def counted(stop_id: int, pad_id: int, responses: torch.Tensor) -> torch.Tensor:
        kept = truncate(stop_id, pad_id, responses)
        tokens.append(int((kept != pad_id).sum()))
        return kept

    def get_reward_or_value(
        model: torch.nn.Module, ids_BT: torch.Tensor, pad_id: int, context_length: int
    ) -> tuple:
        if model is not reward_model:
            return get_reward(model, ids_BT, pad_id, context_length)
        prompts_BP = ids_BT[:, :context_length].tolist()
        expected = [answers[tuple(i for i in ids if i != pad_id)] for ids in prompts_BP]
        texts = tokenizer.batch_decode(ids_BT[:, context_length:], skip_special_tokens=True)
        found = [reward(text, answer) for text, answer in zip(texts, expected, strict=True)]
        rewards.extend(found)
        return None, torch.tensor(found, device=ids_BT.device), None

    def figures() -> dict[str, float]:
        found = {"samples": samples, "tokens": sum(tokens), "reward": sum(rewards) / len(rewards)}
        tokens.clear()
        rewards.clear()
        return found

    def collect() -> int:
        # The second call of an update comes after on_step_end, and so counts in the next iteration.
        return gc.collect() if iterations.mode == "shipped" else 0

    ppo_trainer.truncate_response = counted
    ppo_trainer.get_reward = get_reward_or_value
    ppo_trainer.gc = SimpleNamespace(collect=collect)
    iterations.timed(ppo_trainer, "batch_generation", "sample")
    save_at_stop(iterations, task, save_pretrained(policy, tokenizer))
    trainer.add_callback(update_callback(iterations, 1, figures))
    trainer.train()


def grpo(iterations: Iterations, task: Task) -> None:
    """The installed TRL's GRPOTrainer with as many epochs per rollout; it has no value function."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    from eval.bench.shapes import prompt_dataset
    from pipeline.runtime import set_threads

    set_threads()
    score = reward_of(task)
    samples = task["questions"] * task["completions"]
    steps = task["epochs"] * task["minibatches"]
    figures = {"samples": samples, "tokens": 0}

    def reward(
        completions: list, completion_ids: list, answer: list[str], **columns: object
    ) -> list[float]:
        rewards = [
            score(completion_text(row[0]), a) for row, a in zip(completions, answer, strict=True)
        ]
        figures.update(tokens=sum(map(len, completion_ids)), reward=sum(rewards) / len(rewards))
        return rewards

    args = GRPOConfig(
        output_dir=task["output_dir"],
        max_steps=1_000 * steps,
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
        logging_steps=steps,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    model = AutoModelForCausalLM.from_pretrained(task["model"], dtype="float32")
    tokenizer = AutoTokenizer.from_pretrained(task["model"])
    trainer = GRPOTrainer(
        model, reward, args, processing_class=tokenizer, train_dataset=prompt_dataset(task)
    )
    iterations.timed(trainer, "_generate_single_turn", "sample")
    save_at_stop(iterations, task, save_pretrained(model, tokenizer))
    trainer.add_callback(update_callback(iterations, steps, lambda: figures))
    trainer.train()


def save_pretrained(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase"
) -> Callable[[str], None]:
    """A function that saves a model and its tokenizer to a folder."""

    def save(folder: str) -> None:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    return save


def completion_text(message: dict[str, str]) -> str:
    """The completion as sampled: TRL separates the thought from the answer."""
    thought = message.get("reasoning_content")
    return message["content"] if thought is None else f"{thought}</think>{message['content']}"


def generate(iterations: Iterations, task: Task) -> None:
    """Sampling by transformers' `generate`, in one call or one per question (mode "apart")."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from pipeline.generation.kv_cache import pad_left
    from pipeline.runtime import set_threads

    set_threads()
    model = AutoModelForCausalLM.from_pretrained(task["model"], dtype=task["dtype"]).eval()
    model.to(task["device"])
    tokenizer = AutoTokenizer.from_pretrained(task["model"])
    prompts = read_prompts(task)["ids"][: task["questions"]]
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id

    def sample(prompts: list[list[int]], **options: object) -> list[list[int]]:
        ids_BP, mask_BP = (tensor.to(task["device"]) for tensor in pad_left(prompts, pad))
        sampled_BT = model.generate(
            input_ids=ids_BP,
            attention_mask=mask_BP.long(),
            eos_token_id=end,
            pad_token_id=pad,
            use_cache=True,  # training saves checkpoints with use_cache off
            **options,
        )
        rows = sampled_BT[:, ids_BP.shape[1] :].tolist()
        return [row[: row.index(end) + 1] if end in row else row for row in rows]

    torch.manual_seed(0)
    greedy_tokens = str(sample(prompts[:8], do_sample=False, max_new_tokens=32))
    options = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
    options |= {"max_new_tokens": task["max_length"], "num_return_sequences": task["completions"]}
    while True:
        iterations.begin()
        calls = [[prompt] for prompt in prompts] if iterations.mode == "apart" else [prompts]
        rows = [row for call in calls for row in sample(call, **options)]
        iterations.end(samples=len(rows), tokens=sum(map(len, rows)), greedy=greedy_tokens)


def math_verify(iterations: Iterations, task: Task) -> None:
    """Grading of short answers by math-verify alone."""
    from math_verify import parse, verify

    from eval.bench.ours import report_verdicts
    from eval.bench.shapes import graded_answers
    from pipeline.runtime import prepare_cpu

    prepare_cpu()
    answers = graded_answers()
    while True:
        iterations.begin()
        report_verdicts(
            iterations,
            (
                verify(parse(expected), parse(visible)) == right
                for visible, expected, right in answers
            ),
        )


WORKLOADS = {f.__name__: f for f in (trl_ppo, grpo, generate, math_verify)}

if __name__ == "__main__":
    run_workload(WORKLOADS)
