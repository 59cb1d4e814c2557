"""PPO for a reasoning model in one file that reads from top to bottom, in the manner of CleanRL.

    python -m stages.sft --config configs/nano/sft.yaml
    python examples/ppo_minimal.py --model runs/nano/sft
    accelerate launch --config_file accelerate_config.yaml --num_processes 2 \\
        examples/ppo_minimal.py --model runs/nano/sft

It needs accelerate and no trainer; `pipeline.ppo.trl_trainer` calls the same functions for
sampling, scoring, advantages and losses. A state is a question and the tokens so far, an action the
next token, an episode one completion. Metrics have CleanRL's names; tensor names end in their axes
(B completions, C completion tokens; the key is in `pipeline/records.py`).
"""

import copy
import json
import time
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean

from pipeline.runtime import prepare_cpu

prepare_cpu()  # before the first Accelerator: several processes on a CPU need it

import torch  # noqa: E402
from accelerate import Accelerator  # noqa: E402
from accelerate.utils import gather_object  # noqa: E402
from transformers import HfArgumentParser, PreTrainedTokenizerBase  # noqa: E402
from transformers.hf_argparser import HfArg  # noqa: E402

from pipeline.chat.prompts import encode_prompts  # noqa: E402
from pipeline.chat.tags import split_completion  # noqa: E402
from pipeline.data import load_problems  # noqa: E402
from pipeline.generation import Sampler  # noqa: E402
from pipeline.grading import grade  # noqa: E402
from pipeline.model import attach_value_head, load_policy, save_policy  # noqa: E402
from pipeline.ppo import advantages, losses  # noqa: E402
from pipeline.ppo.kl import k3, kl_penalty  # noqa: E402
from pipeline.ppo.minibatches import make_minibatches  # noqa: E402
from pipeline.ppo.rollout import completion_texts, unpad  # noqa: E402
from pipeline.records import Problem, Rollout  # noqa: E402
from pipeline.scoring import score_completions  # noqa: E402
from pipeline.stats.paired import paired_bootstrap  # noqa: E402
from pipeline.stats.value_metrics import explained_variance  # noqa: E402

SCORED = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")
LOSSES = ("policy_loss", "value_loss", "entropy", "approx_kl", "clipfrac")  # logged, of each token


@dataclass
class Args:
    """Counts of questions and completions are for all processes together."""

    model: str = HfArg(default="runs/nano/sft", help="checkpoint folder of SFT, or a Hub name")
    output_dir: str = HfArg(default="runs/nano/ppo_minimal", help="checkpoint and metrics.jsonl")
    dataset: str = HfArg(default="nano", help="data set with the splits train and test")
    data_root: str | None = HfArg(default=None, help="folder of NAME/SPLIT.jsonl.gz")
    seed: int = HfArg(default=1, help="of questions, samples and minibatches")
    num_rollouts: int = HfArg(default=120, help="rollouts of the run")
    questions: int = HfArg(default=64, help="questions a rollout")
    completions: int = HfArg(default=8, help="completions a question, at least 2")
    max_completion_length: int = HfArg(default=160, help="tokens a completion may have")
    temperature: float = HfArg(default=1.0, help="of sampling and of all log-probabilities")
    learning_rate: float = HfArg(default=3e-5, help="of the policy, decays linearly to 0")
    value_learning_rate: float = HfArg(default=1e-3, help="of the value head, decays as well")
    update_epochs: int = HfArg(default=1, help="passes over a rollout")
    num_minibatches: int = HfArg(default=2, help="optimizer steps a pass")
    micro_batches: int = HfArg(default=1, help="forwards a minibatch is cut into, for memory")
    gae_lambda: float = HfArg(default=1.0, help="lambda of GAE")
    clip_coef: float = HfArg(default=0.2, help="clip range of the probability ratio")
    value_clip: float = HfArg(default=0.2, help="clip range of the value")
    ent_coef: float = HfArg(default=0.0, help="weight of the entropy bonus")
    vf_coef: float = HfArg(default=0.1, help="weight of the value loss")
    kl_coef: float = HfArg(default=0.01, help="weight of the KL to the SFT model, on each token")
    max_grad_norm: float = HfArg(default=1.0, help="bound of the gradient's norm")
    eval_problems: int = HfArg(default=300, help="test problems sampled before and after")
    eval_samples: int = HfArg(default=4, help="samples a test problem")


def reward(problem: Problem, completion: str) -> float:
    """1.0 for a closed thought with a right answer behind it; replace it with your own."""
    parts = split_completion(completion)
    return float(parts is not None and grade(problem, parts[1]).passed)


def sample(
    sampler: Sampler, tokenizer: PreTrainedTokenizerBase, problems: list[Problem], group: int
) -> tuple[Rollout, torch.Tensor]:
    """(rollout, right_B): `group` completions of each problem on the CPU, and their rewards."""
    prompts = encode_prompts(tokenizer, [problem.prompt for problem in problems])
    rollout = sampler.sample(prompts, group=group)
    # The end token is no part of the answer, and a tag that ordinary tokens spell is no tag.
    ids = unpad(rollout.completion_ids_BC, rollout.mask_completion_BC)
    texts = completion_texts(tokenizer, ids, sampler.eos_ids)
    asked_B = [problem for problem in problems for _ in range(group)]
    return rollout, torch.tensor([reward(p, t) for p, t in zip(asked_B, texts, strict=True)])


def main(args: Args) -> list[dict[str, float]]:
    """Train, save the policy to `output_dir`, return one row of metrics a rollout; the last row
    has the sampled accuracy on test problems before and after."""
    accelerator = Accelerator()
    rank, world, device = accelerator.process_index, accelerator.num_processes, accelerator.device
    if args.questions % world or args.eval_problems < world:
        raise ValueError(
            f"questions={args.questions} must be a multiple of the {world} processes, and "
            f"eval_problems={args.eval_problems} no fewer; change them or --num_processes"
        )
    if args.completions < 2:
        raise ValueError(f"completions={args.completions} gives no baseline; take at least 2")
    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    seed = args.seed * 1000 + rank  # every process asks its own questions
    generator = torch.Generator().manual_seed(seed)
    problems = load_problems(args.dataset, "train", args.data_root)
    held_out = load_problems(args.dataset, "test", args.data_root, args.eval_problems)

    # Model: a value head on the policy's trunk, and a frozen copy as the reference. Both stay in
    # eval mode, as they are loaded: without dropout the first ratio is 1.
    policy, tokenizer = load_policy(args.model, value_head="optional", dtype=torch.float32)
    attach_value_head(policy)
    reference = copy.deepcopy(policy).requires_grad_(False).to(device)
    head = {"params": policy.value_head.parameters(), "lr": args.value_learning_rate}
    trunk = [p for name, p in policy.named_parameters() if not name.startswith("value_head.")]
    optimizer = torch.optim.Adam([{"params": trunk}, head], lr=args.learning_rate, eps=1e-5)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: 1 - n / args.num_rollouts)
    policy, optimizer = accelerator.prepare(policy, optimizer)
    actor = accelerator.unwrap_model(policy)
    temperature, length = args.temperature, args.max_completion_length
    sampling = partial(Sampler, actor, tokenizer, temperature=temperature, max_new_tokens=length)
    sampler = sampling(seed=seed)

    def evaluate() -> list[float]:
        """The share of right samples of every test problem; each process samples its part."""
        part = held_out[rank::world]
        same = sampling(seed=seed + 500)  # before and after training
        _, right_B = sample(same, tokenizer, part, args.eval_samples)
        return gather_object(right_B.view(len(part), -1).mean(dim=1).tolist())

    # Log-probability, entropy and value of every completion token, in one forward.
    score = partial(score_completions, temperature=args.temperature)

    def log(row: dict[str, float]) -> None:
        """One line of JSON on the screen and in `metrics.jsonl`."""
        history.append(row)
        accelerator.print(json.dumps({name: round(x, 5) for name, x in row.items()}))
        if accelerator.is_main_process:
            with (folder / "metrics.jsonl").open("w" if len(history) == 1 else "a") as file:
                file.write(json.dumps(row) + "\n")

    history: list[dict[str, float]] = []
    sizes = (args.num_minibatches, args.micro_batches)
    before_Q = evaluate()
    for rollout_number in range(1, args.num_rollouts + 1):
        # Rollout: completions of every question, with log-probability and value of each token.
        start = time.perf_counter()
        drawn = torch.randint(len(problems), (args.questions // world,), generator=generator)
        asked = [problems[i] for i in drawn]
        rollout, right_B = sample(sampler, tokenizer, asked, args.completions)
        batch = {
            "prompt_ids": rollout.prompt_ids_BP,
            "prompt_mask": rollout.mask_prompt_BP,
            "completion_ids": rollout.completion_ids_BC,
            "completion_mask": rollout.mask_completion_BC,
            "old_logprobs": rollout.logprobs_BC,
            "old_values": rollout.values_BC,
        }
        batch = {name: tensor.to(device) for name, tensor in batch.items()}
        mask_BC, values_BC = batch["completion_mask"], batch["old_values"]

        # Rewards: the outcome on the last token, less the KL to the reference on every token.
        with torch.no_grad():
            chunks = zip(*(batch[name].split(args.completions * 4) for name in SCORED), strict=True)
            reference_BC = torch.cat([score(reference, *chunk).logprobs_BC for chunk in chunks])
        kl_BC = kl_penalty(batch["old_logprobs"], reference_BC, mask_BC)
        rewards_BC = advantages.place_rewards(right_B.to(device), mask_BC) - args.kl_coef * kl_BC

        # Advantages: GAE on the value head, corrected by the other completions of the question.
        # The correction compares V with returns, which therefore have no discount.
        discount = {"gamma": 1.0, "lam": args.gae_lambda}
        _, batch["returns"] = advantages.gae(rewards_BC, values_BC, mask_BC, **discount)
        totals_B, first_values_B = rewards_BC.sum(dim=1), values_BC[:, 0]
        baseline_B = advantages.rloo_baseline(totals_B, first_values_B, args.completions)
        corrected_BC = rewards_BC - advantages.place_rewards(baseline_B, mask_BC)
        advantages_BC, _ = advantages.gae(corrected_BC, values_BC, mask_BC, **discount)
        token_sums = advantages.masked_sums(advantages_BC, mask_BC)
        moments = advantages.masked_moments(accelerator.reduce(token_sums, "sum"))
        batch["advantages"] = advantages.standardize(advantages_BC, mask_BC, moments)

        # Update: clipped losses, each a mean over the tokens of a minibatch on all processes.
        sums = torch.zeros(len(LOSSES), device=device)
        for _ in range(args.update_epochs):
            for minibatch in make_minibatches(batch, *sizes, generator):
                tokens = sum(micro["completion_mask"].sum() for micro in minibatch)
                tokens = accelerator.reduce(tokens, "sum")
                for micro in minibatch:
                    weight_BC, old_BC = micro["completion_mask"] / tokens, micro["old_logprobs"]
                    is_last = micro is minibatch[-1]  # the one that reduces the gradients
                    with nullcontext() if is_last else accelerator.no_sync(policy):
                        new = score(policy, *(micro[name] for name in SCORED))
                        actions = (new.logprobs_BC, old_BC, micro["advantages"])
                        pg_BC, clipped_BC = losses.policy_loss(*actions, clip=args.clip_coef)
                        values = (new.values_BC, micro["old_values"], micro["returns"])
                        v_BC, _ = losses.value_loss(*values, clip=args.value_clip)
                        loss_BC = pg_BC + args.vf_coef * v_BC - args.ent_coef * new.entropy_BC
                        # Gradients are averaged over the processes, hence the factor.
                        accelerator.backward((loss_BC * weight_BC).sum() * world)
                    k3_BC = k3(old_BC, new.logprobs_BC, micro["completion_mask"])
                    logged = (pg_BC, v_BC, new.entropy_BC, k3_BC, clipped_BC)
                    sums += torch.stack([(x.detach() * weight_BC).sum() for x in logged])
                accelerator.clip_grad_norm_(policy.parameters(), args.max_grad_norm)
                optimizer.step()
                optimizer.zero_grad()

        # Log: means over the completions of the rollout, then over the optimizer steps.
        tokens, returns_BC = mask_BC.sum(), batch["returns"]
        variance = explained_variance(*(x[mask_BC].cpu().numpy() for x in (values_BC, returns_BC)))
        means = {
            "charts/accuracy": right_B.mean(),
            "charts/episodic_return": totals_B.mean(),
            "charts/episodic_length": tokens / len(mask_BC),
            "charts/truncated": rollout.truncated_B.float().mean(),
            "charts/kl": kl_BC.sum() / tokens,
            "losses/explained_variance": torch.tensor(variance),
        }
        shared = torch.stack([x.float().to(device) for x in means.values()])
        row = dict(zip(means, accelerator.reduce(shared, "mean").tolist(), strict=True))
        sums = accelerator.reduce(sums / args.update_epochs / args.num_minibatches, "sum").tolist()
        row |= {f"losses/{name}": x for name, x in zip(LOSSES, sums, strict=True)}
        row["charts/learning_rate"] = schedule.get_last_lr()[0]
        sampled = row["charts/episodic_length"] * len(mask_BC) * world
        row["charts/SPS"] = sampled / (time.perf_counter() - start)
        log({"iteration": rollout_number, **row})
        schedule.step()

    # Save, and compare with the policy that the run began with on the same test problems.
    after_Q = evaluate()
    row = {"eval/accuracy_before": mean(before_Q), "eval/accuracy_after": mean(after_Q)}
    gain = vars(paired_bootstrap(before_Q, after_Q))
    log(row | {f"eval/gain_{name}": x for name, x in gain.items()})
    if accelerator.is_main_process:
        save_policy(actor, tokenizer, args.output_dir)
    accelerator.end_training()
    return history


if __name__ == "__main__":
    main(HfArgumentParser(Args).parse_args_into_dataclasses()[0])
