"""The process that confines itself and then runs a program; started by `pipeline.sandbox.launch`.

    python -I -S -B -c '... sys.path.insert(0, FOLDER); import _confined; _confined.main(FD)'

reads what to run from the file FD, gives up what a program does not need, and then runs the program
inside this same interpreter:

    _privileges   no root, no capabilities; CPU seconds, memory, stack, no files written, no core
    _landlock     of all files, only the standard library, the shared libraries and numpy can be
                  opened, and nothing can be written
    _seccomp      a list of system calls; every other one is refused. No socket, no fork, no exec,
                  no signal to another process, no mount, no ptrace

Nothing here decides whether a program is right, and the program may read and change everything in
this process. Every step that fails ends the process before the program starts.
"""

import builtins
import ctypes
import marshal
import os
import select
import sys
from itertools import pairwise

TYPE_CHECKING = False  # imports for the type checker alone, which would slow the start of a program
if TYPE_CHECKING:
    from collections.abc import Callable
    from importlib.machinery import ModuleSpec
    from typing import Any

PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS, SIGKILL = 1, 38, 9
ENOSYS, EOPNOTSUPP = 38, 95
PROTOCOL_LINE = 1 << 20  # bytes of one message between two confined processes
DESCRIPTORS = 4096  # file descriptors above are not passed on
ONE_THREAD = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")

libc = ctypes.CDLL(None, use_errno=True)


def main(spec_fd: int) -> None:
    """Read what to run, give up what is not needed, run the program."""
    with os.fdopen(spec_fd, "rb") as file:
        spec = marshal.loads(file.read())
    _confine(spec.pop("isolation"), [fd for name, fd in spec.items() if name.endswith("_fd")])
    _define_exit()
    sys.set_int_max_str_digits(100_000)
    sys.setrecursionlimit(10_000)
    RUN[spec["mode"]](spec)


def _confine(isolation: dict, kept: list[int]) -> None:
    """Apply every restriction, in the only order that works: none may remove what a later one
    needs. The program cannot read `isolation` afterwards."""
    import _landlock
    import _privileges
    import _seccomp

    readable = [*isolation["readable"], *_privileges.library_folders()]
    _privileges.limit(libc, isolation["seconds"], isolation["memory_bytes"])
    _check(_privileges.become_nobody(libc, readable), "giving up root")
    # After the change of user, which would undo it.
    _check(libc.prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0), "PR_SET_PDEATHSIG")
    _exit_without(isolation["parent"])
    _check(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "PR_SET_NO_NEW_PRIVS")
    if isolation["numpy"]:
        sys.meta_path.append(_Numpy(isolation["numpy"]))
    missing = _landlock.version(libc) < 0 and ctypes.get_errno() in (ENOSYS, EOPNOTSUPP)
    if isolation["landlock"] or not missing:
        _check(_landlock.restrict(libc, readable), "Landlock")
    started = isolation["started"]
    for low, high in pairwise([2, *sorted([*kept, started]), DESCRIPTORS]):
        os.closerange(low + 1, high)
    _check(_seccomp.confine(libc), "seccomp")
    os.write(started, b"1")
    os.close(started)
    for name in ("_landlock", "_privileges", "_seccomp"):
        del sys.modules[name]
    sys.path.pop(0)


def _exit_without(parent: int) -> None:
    """Exit if the process that started this one, a pidfd, ended before PR_SET_PDEATHSIG was set."""
    ended = select.poll()
    ended.register(parent, select.POLLIN)
    if ended.poll(0):
        os._exit(1)
    os.close(parent)


def _define_exit() -> None:
    """Give programs exit() and quit(); with -S the interpreter defines neither."""
    from _sitebuiltins import Quitter

    for name in ("exit", "quit"):
        setattr(builtins, name, Quitter(name, "Ctrl-D (i.e. EOF)"))


def _check(result: int, what: str) -> None:
    if result < 0:
        sys.stderr.write(f"sandbox: {what} failed: {os.strerror(ctypes.get_errno())}\n")
        os._exit(97)


class _Numpy:
    """Finder of numpy in its folder, and of no other installed package."""

    def __init__(self, folder: str):
        self.folder = folder

    def find_spec(
        self, name: str, path: object = None, target: object = None
    ) -> "ModuleSpec | None":
        if name != "numpy":
            return None
        from importlib.util import (
            spec_from_file_location,  # here, since it slows the start of a program
        )

        # OpenBLAS allocates memory for every thread that it might start.
        os.environ.update(dict.fromkeys(ONE_THREAD, "1"))
        places = [self.folder]
        file = os.path.join(self.folder, "__init__.py")
        return spec_from_file_location(name, file, submodule_search_locations=places)


# ---- modes ----


def run_program(spec: dict) -> None:
    """Run the program as a script, from stdin to stdout."""
    exec(compile(spec["program"], "<program>", "exec"), {"__name__": "__main__"})


def answer_calls(spec: dict) -> None:
    """Execute the program, then answer calls of its function, one a line, until the requests end.
    What it prints is dropped."""
    import json

    requests = os.fdopen(spec["request_fd"], "rb")
    replies = os.fdopen(spec["reply_fd"], "wb", buffering=0)
    scope: dict = {"__name__": "program"}
    exec(compile(spec["program"], "<program>", "exec"), scope)
    for line in iter(lambda: requests.readline(PROTOCOL_LINE), b""):
        args, kwargs = decode(json.loads(line), scope)
        try:
            result = {"value": encode(_find(scope, spec["function"])(*args, **kwargs))}
        except Exception as error:
            result = {"error": type(error).__name__}
        replies.write(json.dumps(result).encode() + b"\n")


def run_tests(spec: dict) -> None:
    """Run the tests of the data set; the function that they call is evaluated in another confined
    process."""
    import json

    requests = os.fdopen(spec["request_fd"], "rb")
    replies = os.fdopen(spec["reply_fd"], "wb", buffering=0)

    def candidate(*args: object, **kwargs: object) -> object:
        replies.write(json.dumps({"call": encode([args, kwargs])}).encode() + b"\n")
        answer = json.loads(requests.readline(PROTOCOL_LINE))
        if "error" in answer:
            raise RuntimeError(f"the program raised {answer['error']}")
        return decode(answer["value"], scope)

    scope: dict = {"__name__": "tests"}
    exec(compile(spec["setup"], "<setup>", "exec"), scope)
    scope |= {spec["function"]: candidate, "candidate": candidate}
    try:
        exec(compile(spec["tests"], "<tests>", "exec"), scope)
        verdict = "passed"
    except Exception as error:
        verdict = type(error).__name__
    replies.write(json.dumps({"verdict": verdict}).encode() + b"\n")


RUN = {"program": run_program, "calls": answer_calls, "tests": run_tests}


def _find(scope: dict, name: str) -> "Callable[..., object]":
    """A function of the program, or a method of its class Solution."""
    return scope[name] if name in scope else getattr(scope["Solution"](), name)


# ---- plain values as JSON, the only messages between two confined processes ----


def encode(value: object) -> object:
    """JSON of a plain value; an object becomes its class's name and its attributes.

    >>> encode((1, {2}))
    ['tuple', 1, ['set', 2]]
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        for base in (bool, int, float, str):
            if isinstance(value, base):
                return base(value)
        return None
    for collection in (list, tuple, set, frozenset):
        if isinstance(value, collection):
            return [collection.__name__, *map(encode, value)]
    if isinstance(value, dict):
        return ["dict", *([encode(k), encode(v)] for k, v in value.items())]
    if isinstance(value, complex):
        return ["complex", value.real, value.imag]
    if isinstance(value, (bytes, bytearray)):
        return ["bytes", value.hex()]
    if isinstance(value, type):
        name = value.__name__
        if getattr(builtins, name, None) is value:
            return ["type", name]
    return ["object", type(value).__name__, encode(getattr(value, "__dict__", {}))]


def decode(value: object, scope: dict) -> "Any":
    """The value of its JSON; objects of classes that `scope` lacks are unequal to everything.

    >>> decode(encode([1, (2.5, {"a": {3}})]), {})
    [1, (2.5, {'a': {3}})]
    """
    if not isinstance(value, list):
        return value
    kind, *rest = value
    if kind == "object":
        made = object.__new__(scope[rest[0]] if isinstance(scope.get(rest[0]), type) else object)
        for name, attribute in decode(rest[1], scope).items():
            setattr(made, name, attribute)
        return made
    if kind == "type" and isinstance(getattr(builtins, rest[0]), type):
        return getattr(builtins, rest[0])
    if kind == "complex":
        return complex(*rest)
    if kind == "bytes":
        return bytes.fromhex(rest[0])
    if kind == "dict":
        return {decode(k, scope): decode(v, scope) for k, v in rest}
    kinds: dict = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}
    return kinds[kind](decode(item, scope) for item in rest)
