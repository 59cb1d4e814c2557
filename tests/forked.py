"""Commands and ranks in forked processes: a fork needs no second import of torch, which takes 6 s.

A forked process has all modules that this one has imported, so what Python does at its start is
not tested here: tests of that start a program.
"""

import gc
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from subprocess import CompletedProcess

from accelerate.state import AcceleratorState


class Forked:
    """A forked process that calls `function`; its output goes into a file without a terminal.

    `variables` replaces the whole environment. The exit code is that of `sys.exit`, 1 after any
    other exception.
    """

    def __init__(
        self,
        function: Callable[[], object],
        *,
        folder: Path | None = None,
        variables: Mapping[str, str] | None = None,
    ):
        self._files = [tempfile.TemporaryFile("w+", encoding="utf-8") for _ in range(2)]  # noqa: SIM115
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        self.pid = os.fork()
        if self.pid == 0:
            self._run(function, folder, variables)

    def _run(
        self,
        function: Callable[[], object],
        folder: Path | None,
        variables: Mapping[str, str] | None,
    ) -> None:
        code = 1
        gc.freeze()  # collections would copy the memory shared with this process
        try:
            for descriptor, file in enumerate(self._files, start=1):
                os.dup2(file.fileno(), descriptor)
            sys.stdout = os.fdopen(os.dup(1), "w", buffering=1)
            sys.stderr = os.fdopen(os.dup(2), "w", buffering=1)
            if folder is not None:
                os.chdir(folder)
            if variables is not None:
                os.environ.clear()
                os.environ.update(variables)
            function()
            code = 0
        except SystemExit as left:
            code = left.code if isinstance(left.code, int) else int(left.code is not None)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def wait(self) -> CompletedProcess[str]:
        """Return the exit code and the output of the process after its end."""
        _, status = os.waitpid(self.pid, 0)
        return self.output(os.waitstatus_to_exitcode(status))

    def output(self, code: int) -> CompletedProcess[str]:
        """Return what the process has printed, after its end with `code`."""
        for file in self._files:
            file.seek(0)
        out, err = (file.read() for file in self._files)
        for file in self._files:
            file.close()
        return CompletedProcess((), code, out, err)


def run_forked(
    function: Callable[[], object],
    *,
    folder: Path | None = None,
    variables: Mapping[str, str] | None = None,
) -> CompletedProcess[str]:
    """The exit code and the output of a forked process that calls `function`."""
    return Forked(function, folder=folder, variables=variables).wait()


def run_module(module: str, *arguments: str) -> Callable[[], object]:
    """What `python -m module arguments` does, without the start of Python."""

    def run() -> None:
        import runpy

        sys.argv = [module, *arguments]
        sys.modules.pop(module, None)  # runpy warns of a module that was imported before
        runpy.run_module(module, run_name="__main__", alter_sys=True)

    return run


def run_ranks(
    function: Callable[[], object],
    *,
    processes: int = 2,
    variables: Callable[[int], Mapping[str, str]] = lambda rank: {},
    killed: bool = True,
) -> list[CompletedProcess[str]]:
    """The outputs of forked processes that find each other as those of `accelerate launch` do.

    `function` is called in each, with the `variables` of its rank on top of the launcher's. Where
    one fails, the others are killed, unless `killed` is False.
    """
    # Below 32768 only who asks for a port by number gets it.
    port = 20000 + os.getpid() % 12000
    shared = {
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "ACCELERATE_USE_CPU": "true",
        "ACCELERATE_MIXED_PRECISION": "no",
        "OMP_NUM_THREADS": "1",
    }

    def call() -> None:
        AcceleratorState._reset_state(reset_partial_state=True)
        function()

    own = [{"RANK": str(r), "LOCAL_RANK": str(r)} | variables(r) for r in range(processes)]
    ranks = [Forked(call, variables={**os.environ, **shared, **mine}) for mine in own]
    running = {rank.pid: rank for rank in ranks}
    codes: dict[int, int] = {}
    while running:
        ended = [pid for pid in running if _ended(pid, codes)]
        for pid in ended:
            del running[pid]
        if killed and any(codes.values()):
            for pid in running:
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    return [rank.output(codes[rank.pid]) for rank in ranks]


def _ended(pid: int, codes: dict[int, int]) -> bool:
    found, status = os.waitpid(pid, os.WNOHANG)
    if found:
        codes[pid] = os.waitstatus_to_exitcode(status)
    return bool(found)
