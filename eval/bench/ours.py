"""The measured code of this project, one function per benchmark: `ours.py WORKLOAD TASK.json`.

A function imports only what it measures, because imported libraries count in its peak memory.
"""

from collections.abc import Iterable
from itertools import count
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

from eval.bench.measure import (
    Iterations,
    Task,
    read_prompts,
    reward_of,
    run_workload,
    save_at_stop,
)

SFT_BATCH, PRETRAIN_STEPS = 16, 20  # rows of a step of SFT; steps of an iteration
BLOCK, BLOCKS, DOCUMENTS = 256, 8, 32  # of a step of pretraining; a document has about 70 tokens
PROGRAM_SETS = (("humaneval", "test"), ("mbpp", "train"), ("mbpp", "validation"), ("mbpp", "test"))


def ppo(iterations: Iterations, task: Task) -> None:
    """PPO updates: one rollout and its epochs per iteration."""
    from pipeline.runtime import prepare_cpu

    prepare_cpu()  # as in the stage: before anything allocates memory

    from eval.bench.measure import update_callback
    from eval.bench.shapes import linear_flops, prompt_dataset
    from pipeline.model import load_policy, save_policy
    from pipeline.ppo.config import PPOConfig
    from pipeline.ppo.trl_trainer import ReasoningPPOTrainer

    if task.get("without"):
        from eval.bench.gpu_parts import leave_out

        leave_out(task["without"])
    score = reward_of(task)
    rewards: list[float] = []

    def reward(completions: list, answer: list[str], **columns: object) -> list[float]:
        rewards[:] = [
            score(row[0]["content"], a) for row, a in zip(completions, answer, strict=True)
        ]
        return list(rewards)

    model, tokenizer = load_policy(task["model"])
    advantages: dict[str, Any] = {"value_coef": 0.1}
    if not task.get("value_head", True):
        advantages = {"value_coef": 0.0, "lam": 1.0, "rloo_baseline": True}
        advantages |= {"zero_variance_groups": "skip"}
    args = PPOConfig(
        output_dir=task["output_dir"],
        num_rollouts=1_000,
        questions_per_rollout=task["questions"],
        completions_per_question=task["completions"],
        ppo_epochs=task["epochs"],
        num_minibatches=task["minibatches"],
        max_completion_length=task["max_length"],
        learning_rate=task["learning_rate"],
        kl_coef=task["kl_coef"],
        entropy_coef=0.0,
        seed=task["seed"],
        bf16=task["dtype"] == "bfloat16",
        disable_tqdm=True,
        **(advantages | task.get("options", {})),
    )
    trainer = ReasoningPPOTrainer(
        model, reward, args, processing_class=tokenizer, train_dataset=prompt_dataset(task)
    )

    def figures() -> dict[str, float]:
        rollout = trainer.rollout_batch
        completion = int(rollout["completion_mask"].sum())
        prompt = int(rollout["prompt_mask"].sum())
        flops = linear_flops(trainer.model, prompt + completion, completion)
        return {
            "samples": len(rollout["advantages"]),
            "reward": sum(rewards) / len(rewards),
            "tokens": completion,
            "update_gflop": task["epochs"] * flops / 1e9,
        }

    iterations.timed(trainer.policy_sampler.sampler, "sample", "sample")
    iterations.timed(trainer.collector, "reference", "reference")
    iterations.timed(trainer, "collect_rollout", "rollout")
    save_at_stop(iterations, task, lambda folder: save_policy(model, tokenizer, folder))
    trainer.add_callback(update_callback(iterations, args.steps_per_rollout, figures))
    trainer.train()


def longest(iterations: Iterations, task: Task) -> None:
    """The longest completion of which an update fits in memory."""
    from eval.bench import gpu_parts
    from pipeline.runtime import set_threads

    set_threads()
    gpu_parts.longest(iterations, task)


def rollout(iterations: Iterations, task: Task) -> None:
    """Sampling, log-probabilities and values included."""
    import torch

    from pipeline.generation import Sampler
    from pipeline.model import load_policy
    from pipeline.runtime import set_threads

    set_threads()
    model, tokenizer = load_policy(task["model"])
    model.to(task["device"], getattr(torch, task["dtype"]))
    model.value_head.float()  # it computes in float32 whatever the trunk's precision
    prompts = read_prompts(task)["ids"]
    torch.manual_seed(0)
    greedy = Sampler(model, tokenizer, temperature=0, max_new_tokens=32).sample(prompts[:8])
    rows = zip(greedy.completion_ids_BC, greedy.mask_completion_BC, strict=True)
    greedy_tokens = str([ids[mask].tolist() for ids, mask in rows])
    sampler = Sampler(model, tokenizer, temperature=1.0, max_new_tokens=task["max_length"])
    while True:
        iterations.begin()
        sampled = sampler.sample(prompts, group=task["completions"])
        iterations.end(
            samples=len(sampled.completion_ids_BC),
            tokens=int(sampled.mask_completion_BC.sum()),
            greedy=greedy_tokens,
        )


def search(iterations: Iterations, task: Task) -> None:
    """Consensus search, encoding of prompts and the vote included."""
    from pipeline.generation.shared_prefix import DecodeRequest, PrefixEngine
    from pipeline.model import load_policy
    from pipeline.runtime import set_threads
    from pipeline.search import STRATEGIES, SearchOptions

    set_threads()
    model, tokenizer = load_policy(task["model"])
    prompts = read_prompts(task)
    questions = prompts["questions"][: task["questions"]]
    engine = PrefixEngine(model, tokenizer)
    requests = [
        DecodeRequest(sequence=root, budget=32, stream=(0,), temperature=0.0)
        for root in engine.start(prompts["ids"][: task["questions"]])
    ]
    greedy_tokens = str([list(branch.ids) for branch in engine.extend(requests)])
    for seed in count():
        options = SearchOptions(
            n=task["completions"],
            temperature=1.0,
            max_sample_tokens=task["max_length"],
            answer_tokens=0,  # generate closes no thought either
            batch_size=task["batch_size"],
            seed=seed,
        )
        iterations.begin()
        answers = STRATEGIES["consensus"](model, tokenizer, questions, options)
        iterations.end(
            samples=len(answers) * task["completions"],
            tokens=sum(answer.usage.completion_tokens for answer in answers),
            greedy=greedy_tokens,
        )


def sft(iterations: Iterations, task: Task) -> None:
    """Supervised steps of our trainer, or of TRL's SFTTrainer with its defaults (`task["trl"]`)."""
    from pipeline.runtime import prepare_cpu, set_threads

    set_threads() if task["trl"] else prepare_cpu()

    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    from eval.bench.measure import update_callback
    from pipeline.data import load_problems
    from pipeline.data.sft_examples import sft_dataset
    from pipeline.sft.trainer import ReasoningSFTConfig, ReasoningSFTTrainer

    model = AutoModelForCausalLM.from_pretrained(task["model"], dtype="float32")
    tokenizer = AutoTokenizer.from_pretrained(task["model"])
    dataset, _ = sft_dataset(tokenizer, load_problems("nano", "train")[:2048], progress=False)
    steps = task["sft_steps"]
    shared = {
        "output_dir": task["output_dir"],
        "max_steps": 1_000 * steps,
        "per_device_train_batch_size": SFT_BATCH,
        "learning_rate": task["learning_rate"],
        "logging_steps": steps,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }
    if task["trl"]:
        trainer_class = SFTTrainer
        args = SFTConfig(**shared, bf16=False, use_cpu=True, gradient_checkpointing=False)
    else:
        trainer_class = ReasoningSFTTrainer
        args = ReasoningSFTConfig(**shared, train_sampling_strategy="group_by_length")
    trainer = trainer_class(
        model=model, args=args, train_dataset=dataset, processing_class=tokenizer
    )
    step = trainer.training_step
    tokens: list[int] = []

    def counted(model: "nn.Module", inputs: dict, *rest: object, **named: object) -> "Tensor":
        tokens.append(int((inputs["labels"] != -100).sum()))
        return step(model, inputs, *rest, **named)

    def figures() -> dict[str, float]:
        found: dict[str, float] = {"samples": steps * SFT_BATCH, "tokens": sum(tokens)}
        tokens.clear()
        return found

    trainer.training_step = counted
    trainer.add_callback(update_callback(iterations, steps, figures))
    trainer.train()


def pretrain(iterations: Iterations, task: Task) -> None:
    """Language modelling on packed blocks, or with transformers' Trainer on padded documents."""
    from pipeline.runtime import prepare_cpu, set_threads

    set_threads() if task["padded"] else prepare_cpu()

    from datasets import Dataset
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        DataCollatorForLanguageModeling,
        Trainer,
        TrainingArguments,
    )

    from eval.bench.measure import update_callback
    from pipeline.data import load_problems
    from pipeline.pretrain.config import PretrainConfig
    from pipeline.pretrain.documents import document
    from pipeline.pretrain.packing import PackTexts
    from pipeline.pretrain.trainer import PretrainTrainer

    model = AutoModelForCausalLM.from_pretrained(task["model"], dtype="float32")
    tokenizer = AutoTokenizer.from_pretrained(task["model"])
    texts = {"text": [document(problem) for problem in load_problems("nano", "train")[:4096]]}
    shared = {
        "output_dir": task["output_dir"],
        "max_steps": 1_000 * PRETRAIN_STEPS,
        "learning_rate": task["learning_rate"],
        "logging_steps": PRETRAIN_STEPS,
        "save_strategy": "no",
        "eval_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }
    trainer: Trainer
    if task["padded"]:
        end = tokenizer.eos_token
        rows = [{"input_ids": tokenizer(text + end).input_ids} for text in texts["text"]]
        trainer = Trainer(
            model=model,
            args=TrainingArguments(**shared, per_device_train_batch_size=DOCUMENTS, use_cpu=True),
            train_dataset=Dataset.from_list(rows),
            data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
        )
    else:
        pack = PackTexts(tokenizer, BLOCK)
        blocks = Dataset.from_dict(texts).map(pack, batched=True, remove_columns=["text"])
        trainer = PretrainTrainer(
            model=model,
            args=PretrainConfig(**shared, max_length=BLOCK, per_device_train_batch_size=BLOCKS),
            train_dataset=blocks,
            processing_class=tokenizer,
        )
    step = trainer.training_step
    counts: list[tuple[int, int]] = []

    def counted(model: "nn.Module", inputs: dict, *rest: object, **named: object) -> "Tensor":
        ids, mask = inputs["input_ids"], inputs["attention_mask"].bool()
        ends = (ids == tokenizer.eos_token_id) & mask
        counts.append((int(ends.sum()), int(mask.sum())))
        return step(model, inputs, *rest, **named)

    def figures() -> dict[str, float]:
        samples, tokens = (sum(column) for column in zip(*counts, strict=True))
        counts.clear()
        return {"samples": samples, "tokens": tokens}

    trainer.training_step = counted
    trainer.add_callback(update_callback(iterations, PRETRAIN_STEPS, figures))
    trainer.train()


def memory(iterations: Iterations, task: Task) -> None:
    """Scores of completions and their gradients, in packed rows or padded ones (`task["padded"]`),
    with or without gradient checkpointing (`task["checkpointing"]`).

    The trunk is small, so that time and memory are those of vocabulary and length.
    """
    import torch

    from eval.bench.shapes import Shape, random_model
    from pipeline.data import load_problems
    from pipeline.model import train_tokenizer
    from pipeline.runtime import set_threads
    from pipeline.scoring import completions, score_completions

    set_threads()
    tokenizer = train_tokenizer(p.question for p in load_problems("nano", "train")[:100])
    shape = Shape(hidden_size=64, num_hidden_layers=2, vocab_size=task["vocab_size"])
    model = random_model(shape, tokenizer).train()
    if task["padded"]:
        completions.supports_packing = lambda model: False
    if task["checkpointing"]:
        model.gradient_checkpointing_enable()
    rows, length = task["rows"], task["length"]
    prompt_BP = torch.randint(10, 256, (rows, 16))
    completion_BC = torch.randint(10, 256, (rows, length))
    full = torch.ones(rows, 16, dtype=torch.bool), torch.ones(rows, length, dtype=torch.bool)
    while True:
        iterations.begin()
        model.zero_grad()
        scores = score_completions(model, prompt_BP, full[0], completion_BC, full[1])
        assert scores.values_BC is not None
        (scores.logprobs_BC.sum() + scores.entropy_BC.sum() + scores.values_BC.sum()).backward()
        iterations.end(samples=rows, tokens=rows * length)


def grader(iterations: Iterations, task: Task) -> None:
    """Grading of short answers."""
    from eval.bench.shapes import graded_answers
    from pipeline.grading import same_answer
    from pipeline.runtime import prepare_cpu

    prepare_cpu()
    answers = graded_answers()
    while True:
        iterations.begin()
        report_verdicts(iterations, (same_answer(*pair) == right for *pair, right in answers))


def programs(iterations: Iterations, task: Task) -> None:
    """The data sets' reference programs in the sandbox, at the level of isolation `mode`."""
    import json

    from pipeline.data import load_problems
    from pipeline.grading.programs import grade_program
    from pipeline.runtime import prepare_cpu

    prepare_cpu()
    problems = [p for name in PROGRAM_SETS for p in load_problems(*name, task["data_root"])]
    while True:
        iterations.begin()
        level = iterations.mode
        graded = (grade_program(p.answer, json.loads(p.check), level=level) for p in problems)
        report_verdicts(iterations, (verdict.passed for verdict in graded))


def report_verdicts(iterations: Iterations, as_expected: Iterable[bool]) -> None:
    """End an iteration of grading; `as_expected` says of each verdict whether it is correct."""
    found = list(as_expected)
    iterations.end(samples=len(found), tokens=len(found), agreed=sum(found) / len(found))


WORKLOADS = {
    f.__name__: f for f in (ppo, longest, rollout, search, sft, pretrain, memory, grader, programs)
}

if __name__ == "__main__":
    run_workload(WORKLOADS)
