"""Model-written programs: run where they can do no harm, judged from outside.

run       a program, fed with text, at a level of isolation that was tried here
launch    starts and ends the guard, the process that confines itself and runs the program
probe     which levels of isolation hold on this machine
outcome   what a program wrote, and how it ended
thread_states  whether a process sleeps or waits for a processor
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
