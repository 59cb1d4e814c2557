"""Rewards: pure functions of text, and the rubric that weights them.

functions   correctness, well_formed, brevity
steps       rewards of the equations in a thought, checked by exact arithmetic
rubric      the weighted sum, and the reward functions for TRL
"""

from pipeline.rewards.functions import RewardFn, brevity, correctness, well_formed
from pipeline.rewards.rubric import REWARDS, Rubric, completion_text
from pipeline.rewards.steps import (
    Step,
    check_steps,
    coherence,
    correct_steps,
    self_correction,
    step_rewards,
)

__all__ = [
    "REWARDS",
    "RewardFn",
    "Rubric",
    "Step",
    "brevity",
    "check_steps",
    "coherence",
    "completion_text",
    "correct_steps",
    "correctness",
    "self_correction",
    "step_rewards",
    "well_formed",
]
