"""A contender: twenty supervised steps, by our trainer or by trl's SFTTrainer with its defaults."""

from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from eval.bench.iteration import Iterations, read_task
from eval.bench.trainers import OneUpdatePerIteration
from pipeline.data import load_problems
from pipeline.data.sft_examples import sft_dataset
from pipeline.runtime import prepare_cpu, set_threads
from pipeline.sft.trainer import ReasoningSFTConfig, ReasoningSFTTrainer

STEPS, BATCH = 20, 16


def main() -> None:
    iterations, task = Iterations(), read_task()
    prepare_cpu() if task["ours"] else set_threads()
    model = AutoModelForCausalLM.from_pretrained(task["model"], dtype="float32")
    tokenizer = AutoTokenizer.from_pretrained(task["model"])
    dataset, _ = sft_dataset(tokenizer, load_problems("nano", "train")[:2048], progress=False)
    shared = {
        "output_dir": task["output_dir"],
        "max_steps": 1_000 * STEPS,
        "per_device_train_batch_size": BATCH,
        "learning_rate": task["learning_rate"],
        "logging_steps": STEPS,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }
    done = {"samples": STEPS * BATCH, "tokens": 0}
    if task["ours"]:
        args = ReasoningSFTConfig(**shared, train_sampling_strategy="group_by_length")
        trainer = ReasoningSFTTrainer(
            model=model, args=args, train_dataset=dataset, processing_class=tokenizer
        )
    else:
        args = SFTConfig(**shared, bf16=False, use_cpu=True, gradient_checkpointing=False)
        trainer = SFTTrainer(
            model=model, args=args, train_dataset=dataset, processing_class=tokenizer
        )
    step = trainer.training_step

    def counted(model: Any, inputs: Any, *rest: Any, **named: Any) -> Any:
        done["tokens"] += int((inputs["labels"] != -100).sum())
        return step(model, inputs, *rest, **named)

    def figures() -> dict[str, int]:
        found = dict(done)
        done["tokens"] = 0
        return found

    trainer.training_step = counted
    trainer.add_callback(OneUpdatePerIteration(iterations, STEPS, figures))
    trainer.train()


if __name__ == "__main__":
    main()
