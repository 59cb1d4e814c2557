"""Rewards: pure functions of text, and the rubric that weighs them.

rewards   correctness, well_formed, brevity
steps     every written sum checked, with a reward where it stands
rubric    the weighted sum, and its shape for TRL
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
