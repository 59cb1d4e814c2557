"""What a PPO run is made of: our names, the names that follow, and what is refused."""

from dataclasses import fields

import pytest
from trl import GRPOConfig

from pipeline.ppo.config import GRPO_ONLY, SUPERVISED_ONLY, PPOConfig

TWO_BY_FOUR = {"questions_per_rollout": 2, "completions_per_question": 4, "num_minibatches": 1}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_minibatches": 3}, "num_minibatches=3 x 1 processes must divide the rollout of 2 "),
        ({"micro_batch_size": 3}, "micro_batch_size=3 must divide the minibatch of 8 sequences"),
        ({"micro_batch_size": 0}, "micro_batch_size=0 must be at least 1"),
        ({"completions_per_question": 1}, "completions_per_question=1 must be at least 2"),
        ({"gamma": 1.5}, r"gamma=1.5 must lie in \[0, 1\]"),
        ({"lam": -0.1}, r"lam=-0.1 must lie in \[0, 1\]"),
        ({"clip": 0.0}, "clip=0.0 must be above 0"),
        ({"value_clip": 0.0}, "value_clip=0.0 must be above 0, or null"),
        ({"kl_coef": -1.0}, "kl_coef=-1.0 must be at least 0"),
        ({"num_rollouts": 0}, "num_rollouts=0 must be at least 1"),
        ({"num_rollouts": 2.5}, "num_rollouts=2.5 must be a whole number"),
        ({"learning_rate": "abc"}, "learning_rate='abc' must be a number"),
        ({"max_completion_length": 0}, "max_completion_length=0 must be at least 1"),
        ({"muon_momentum": 1.0}, r"muon_momentum=1.0 must lie in \[0, 1\)"),
        ({"adamw_learning_rate": 1e-3}, "adamw_learning_rate=0.001 is AdamW's part beside Muon"),
        (
            {"muon": True, "adamw_learning_rate": 0.0},
            "adamw_learning_rate=0.0 must be above 0, or null",
        ),
        ({"max_steps": 7}, "max_steps=7 follows from num_rollouts in PPO; give num_rollouts"),
        ({"beta": 0.1}, "beta=0.1 follows from kl_coef in PPO; give kl_coef instead"),
        ({"top_p": 0.9}, "top_p=0.9 belongs to GRPO and does nothing in PPO; leave it out"),
        ({"use_bias_correction_kl": False}, "use_bias_correction_kl=False belongs to GRPO"),
        ({"vllm_importance_sampling_correction": False}, "does nothing in PPO"),
        ({"vllm_importance_sampling_mode": "token_mask"}, "does nothing in PPO"),
        ({"vllm_importance_sampling_clip_max": 2.0}, "does nothing in PPO"),
        ({"trust_remote_code": True}, "would run code of the model's repository"),
        ({"per_device_eval_batch_size": 0}, "per_device_eval_batch_size=0 must be at least 1"),
        ({"router_aux_loss_coef": 0.1}, "does nothing in PPO"),
        ({"num_train_epochs": 5.0}, "num_train_epochs=5.0 follows from num_rollouts in PPO; give"),
        ({"logging_steps": 50}, "logging_steps=50 follows from ppo_epochs and num_minibatches in"),
        ({"save_strategy": "epoch"}, "save_strategy=epoch follows from save_every in PPO; give"),
        ({"save_strategy": "no", "save_every": 1}, "save_strategy=no follows from save_every in"),
        (
            {"neftune_noise_alpha": 5.0},
            "neftune_noise_alpha=5.0 belongs to supervised training, and PPO trains on samples of",
        ),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor=0.1 belongs to supervised trai"),
        ({"train_sampling_strategy": "group_by_length"}, "train_sampling_strategy='group_by_leng"),
        ({"muon": True, "optim": "sgd"}, "optim='sgd' does nothing with muon=true, which brings"),
        ({"muon": True, "adam_beta2": 0.5}, "adam_beta2=0.5 does nothing with muon=true, which"),
    ],
)
def test_a_wrong_value_is_refused_in_one_line(options, message):
    with pytest.raises(ValueError, match=message) as caught:
        PPOConfig(**{**TWO_BY_FOUR, **options})
    assert "\n" not in str(caught.value)


def test_what_follows_from_our_names_is_what_trl_reads():
    args = PPOConfig(
        num_rollouts=3,
        questions_per_rollout=4,
        completions_per_question=4,
        ppo_epochs=2,
        num_minibatches=2,
        micro_batch_size=4,
        save_every=2,
        kl_coef=0.2,
    )
    # 4 x 4 = 16 sequences, minibatches of 8; 4 steps a rollout. Trainer does not cut minibatches.
    assert (args.per_device_train_batch_size, args.gradient_accumulation_steps) == (8, 1)
    assert args.steps_per_generation == 2
    assert args.generation_batch_size == 16
    assert (args.max_steps, args.save_steps, args.beta) == (12, 8, 0.2)


def test_a_run_has_its_size_and_its_steps():
    args = PPOConfig(num_rollouts=3)
    assert args.rollout_size == 32 * 8
    assert args.steps_per_rollout == 4 * 4
    assert args.logging_steps == 16  # one line a rollout
    assert args.save_strategy == "no"


def test_micro_batches_and_processes_share_a_minibatch(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(
        GRPOConfig, "__post_init__", lambda self: None
    )  # it would look for the other
    args = PPOConfig(**{**TWO_BY_FOUR, "micro_batch_size": 2})
    # 8 sequences are one minibatch, 4 a process.
    assert (args.per_device_train_batch_size, args.micro_batch_size) == (4, 2)
    with pytest.raises(ValueError, match="num_minibatches=8 x 2 processes must divide the rollout"):
        PPOConfig(**{**TWO_BY_FOUR, "num_minibatches": 8})


@pytest.mark.parametrize(
    "options",
    [{"normalize_advantages": "group"}, {"zero_variance_groups": "skip"}, {"rloo_baseline": True}],
)
def test_what_reads_whole_groups_needs_whole_groups_on_every_process(monkeypatch, options):
    monkeypatch.setenv("WORLD_SIZE", "8")
    with pytest.raises(ValueError, match="8 processes must divide questions_per_rollout=2"):
        PPOConfig(**TWO_BY_FOUR, **options)


def test_a_micro_batch_larger_than_the_minibatch_is_the_minibatch(capsys):
    args = PPOConfig(**{**TWO_BY_FOUR, "micro_batch_size": 64})
    assert (args.per_device_train_batch_size, args.gradient_accumulation_steps) == (8, 1)
    assert args.micro_batch_size == 8
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and "micro_batch_size=64" in said and "8 sequences" in said


# Read by TRL, transformers or this project in a PPO run, or without an effect on training.
USED = """
    cast_lm_head_to_fp32 disable_dropout ds3_gather_for_generation log_completions
    log_completions_hub_repo log_multimodal log_unique_prompts mask_truncated_completions
    max_completion_length model_init_kwargs num_completions_to_print num_generations_eval
    ref_model_mixup_alpha ref_model_sync_steps reward_weights shuffle_dataset sync_ref_model
    temperature trust_remote_code use_vllm vllm_enable_sleep_mode vllm_gpu_memory_utilization
    vllm_group_port vllm_max_model_length vllm_mode vllm_model_impl vllm_server_base_url
    vllm_server_host vllm_server_port vllm_server_timeout vllm_structured_outputs_regex
    vllm_tensor_parallel_size entropy_coef
"""
USED_OF_TRANSFORMERS = """
    accelerator_config activation_checkpointing activation_checkpointing_kwargs adam_beta1
    adam_beta2 adam_epsilon auto_find_batch_size average_tokens_across_devices batch_eval_metrics
    bf16 bf16_full_eval data_seed dataloader_drop_last dataloader_in_order
    dataloader_multiprocessing_context dataloader_num_workers dataloader_persistent_workers
    dataloader_pin_memory dataloader_prefetch_factor ddp_backend ddp_broadcast_buffers
    ddp_bucket_cap_mb ddp_find_unused_parameters ddp_static_graph ddp_timeout debug deepspeed
    disable_tqdm do_eval do_predict do_train enable_jit_checkpoint eval_accumulation_steps
    eval_delay eval_do_concat_batches eval_on_start eval_steps eval_strategy eval_use_gather_object
    fp16 fp16_full_eval fsdp fsdp_config full_determinism gradient_checkpointing
    gradient_checkpointing_kwargs greater_is_better hub_always_push hub_model_id hub_private_repo
    hub_revision hub_strategy hub_token ignore_data_skip include_for_metrics
    include_num_input_tokens_seen label_names learning_rate length_column_name liger_kernel_config
    load_best_model_at_end local_rank log_level log_level_replica log_on_each_node
    logging_first_step logging_nan_inf_filter logging_strategy lr_scheduler_kwargs lr_scheduler_type
    max_grad_norm metric_for_best_model optim optim_args optim_target_modules output_dir
    parallelism_config per_device_eval_batch_size prediction_loss_only project push_to_hub
    remove_unused_columns report_to restore_callback_states_from_checkpoint resume_from_checkpoint
    run_name save_on_each_node save_only_model save_total_limit seed skip_memory_metrics tf32
    torch_compile torch_compile_backend torch_compile_mode torch_empty_cache_steps trackio_bucket_id
    trackio_space_id trackio_static_space_id use_cache use_cpu use_liger_kernel warmup_steps
    weight_decay
"""
DERIVED = """
    beta epsilon epsilon_high generation_batch_size gradient_accumulation_steps logging_steps
    max_steps num_generations num_iterations num_train_epochs per_device_train_batch_size
    save_steps save_strategy steps_per_generation
"""


def test_float16_is_refused_where_the_loss_would_be_scaled(tmp_path):
    with pytest.raises(ValueError, match="fp16=true scales the loss"):
        PPOConfig(output_dir=str(tmp_path), fp16=True)


def test_every_field_of_grpo_is_used_derived_or_refused():
    used = {*USED.split(), *USED_OF_TRANSFORMERS.split()}
    known = used | {*DERIVED.split(), *GRPO_ONLY, *SUPERVISED_ONLY}
    assert {field.name for field in fields(GRPOConfig)} - known == set()


@pytest.mark.parametrize("name", DERIVED.split())
def test_a_derived_value_of_one_s_own_is_refused(name):
    value = "epoch" if name == "save_strategy" else 7
    with pytest.raises(ValueError, match=rf"{name}={value} follows from .* in PPO; give "):
        PPOConfig(**TWO_BY_FOUR, **{name: value})


def test_values_that_follow_may_be_given_where_they_agree():
    assert PPOConfig(num_rollouts=2, ppo_epochs=1, num_minibatches=4, max_steps=8).max_steps == 8
