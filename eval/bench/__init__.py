"""Speed and memory, ours against peers, in one run: `python -m eval.bench COMMAND`.

    __main__   the command: what is compared, and the table
    shapes     the models and prompts that are timed
    race       starts the contenders and lets them take turns
    lap        the clock inside a contender
    ours_ppo, peer_ppo, grpo_ppo, ours_rollout, ...   one contender each, a process of its own

A contender is a script that knows nothing of the others. The peer's runs with an interpreter of its
own, in which this project need not be installed.
"""
