"""Isolation of model-written programs; the caller grades what they return.

run        run a program on a text, at a level of isolation that works on this machine
launch     start and end the confined process, which gives up its rights and runs the program
probe      find the levels of isolation that work on this machine
outcome    what a program wrote, and how it ended
waiting    wait for a process, by whether it sleeps or waits for a processor
"""

from pipeline.sandbox.run import (
    Limits,
    Outcome,
    SandboxError,
    require_level,
    run_program,
    working_levels,
)

__all__ = [
    "Limits",
    "Outcome",
    "SandboxError",
    "require_level",
    "run_program",
    "working_levels",
]
