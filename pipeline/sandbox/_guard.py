"""What stands between a program and the machine. Run as a script, by `pipeline.sandbox.launch`.

    python -I -S -B -c 'import sys; sys.path.insert(0, FOLDER); import _guard; _guard.main(FD)'

reads its orders from the file FD, gives up what a program does not need, and then runs the program
inside this same interpreter:

    _privileges   no root, no capabilities; CPU seconds, memory, stack, no files written, no core
    _landlock     of all files, only the standard library, the shared libraries and numpy can be
                  opened, and nothing can be written
    _seccomp      a list of system calls; every other one is refused. No socket, no fork, no exec,
                  no signal to another process, no mount, no ptrace

Nothing here decides whether a program is right: what the program finds in this process, it may
have. Every step that cannot be taken ends the process before the program starts.
"""

import builtins
import ctypes
import marshal
import os
import select
import sys
from itertools import pairwise

PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS, SIGKILL = 1, 38, 9
ENOSYS, EOPNOTSUPP = 38, 95
PROTOCOL_LINE = 1 << 20  # bytes of one question or answer between two guards
DESCRIPTORS = 4096  # none above was passed on
ONE_THREAD = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")

libc = ctypes.CDLL(None, use_errno=True)


def main(orders_fd: int) -> None:
    """Read the orders, give up what is not needed, run the program."""
    with os.fdopen(orders_fd, "rb") as file:
        orders = marshal.loads(file.read())
    _lock(orders.pop("isolation"), [fd for name, fd in orders.items() if name.endswith("_fd")])
    sys.set_int_max_str_digits(100_000)
    sys.setrecursionlimit(10_000)
    RUN[orders["mode"]](orders)


def _lock(isolation: dict, kept: list[int]) -> None:
    """Every restriction, in the only order that works: each takes away what the next must not
    need. Nothing of `isolation` is in reach of the program afterwards."""
    import _landlock
    import _privileges
    import _seccomp

    readable = [*isolation["readable"], *_privileges.library_folders()]
    _privileges.limit(libc, isolation["seconds"], isolation["memory_bytes"])
    _check(_privileges.become_nobody(libc, readable), "giving up root")
    # After the change of user, which would undo it.
    _check(libc.prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0), "PR_SET_PDEATHSIG")
    _end_without(isolation["judge"])
    _check(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "PR_SET_NO_NEW_PRIVS")
    if isolation["numpy"]:
        sys.meta_path.append(_Numpy(isolation["numpy"]))
    missing = _landlock.version(libc) < 0 and ctypes.get_errno() in (ENOSYS, EOPNOTSUPP)
    if isolation["landlock"] or not missing:
        _check(_landlock.restrict(libc, readable), "Landlock")
    begin = isolation["begin"]
    for low, high in pairwise([2, *sorted([*kept, begin]), DESCRIPTORS]):
        os.closerange(low + 1, high)
    _check(_seccomp.confine(libc), "seccomp")
    os.write(begin, b"1")
    os.close(begin)
    for name in ("_landlock", "_privileges", "_seccomp"):
        del sys.modules[name]
    sys.path.pop(0)


def _end_without(judge: int) -> None:
    """End this process if the one that started it, a pidfd, ended before it was watched."""
    ended = select.poll()
    ended.register(judge, select.POLLIN)
    if ended.poll(0):
        os._exit(1)
    os.close(judge)


def _check(result: int, what: str) -> None:
    if result < 0:
        sys.stderr.write(f"guard: {what} is not to be had: {os.strerror(ctypes.get_errno())}\n")
        os._exit(97)


class _Numpy:
    """Finds numpy in its folder, and nothing of what is installed beside it."""

    def __init__(self, folder: str):
        self.folder = folder

    def find_spec(self, name: str, path: object = None, target: object = None):
        if name != "numpy":
            return None
        from importlib.util import spec_from_file_location  # late: it costs a program's start

        # OpenBLAS takes memory for every thread that it might start.
        os.environ.update(dict.fromkeys(ONE_THREAD, "1"))
        places = [self.folder]
        file = os.path.join(self.folder, "__init__.py")
        return spec_from_file_location(name, file, submodule_search_locations=places)


# ---- what is run ----


def run_program(spec: dict) -> None:
    """The program as a script: stdin in, stdout out."""
    exec(compile(spec["program"], "<program>", "exec"), {"__name__": "__main__"})


def answer_calls(spec: dict) -> None:
    """Define what the program defines, then answer calls of its function, one a line, until the
    questions end. What it prints goes nowhere."""
    import json

    ask, reply = os.fdopen(spec["ask_fd"], "rb"), os.fdopen(spec["reply_fd"], "wb", buffering=0)
    scope = {"__name__": "program"}
    exec(compile(spec["program"], "<program>", "exec"), scope)
    for line in iter(lambda: ask.readline(PROTOCOL_LINE), b""):
        args, kwargs = decode(json.loads(line), scope)
        try:
            result = {"value": encode(_find(scope, spec["function"])(*args, **kwargs))}
        except Exception as error:
            result = {"error": type(error).__name__}
        reply.write(json.dumps(result).encode() + b"\n")


def run_tests(spec: dict) -> None:
    """The data set's own tests, with the function that they call answered by another guard."""
    import json

    ask, reply = os.fdopen(spec["ask_fd"], "rb"), os.fdopen(spec["reply_fd"], "wb", buffering=0)

    def candidate(*args: object, **kwargs: object) -> object:
        reply.write(json.dumps({"call": encode([args, kwargs])}).encode() + b"\n")
        answer = json.loads(ask.readline(PROTOCOL_LINE))
        if "error" in answer:
            raise RuntimeError(f"the program raised {answer['error']}")
        return decode(answer["value"], scope)

    scope = {"__name__": "tests"}
    exec(compile(spec["setup"], "<setup>", "exec"), scope)
    scope |= {spec["function"]: candidate, "candidate": candidate}
    try:
        exec(compile(spec["tests"], "<tests>", "exec"), scope)
        verdict = "passed"
    except Exception as error:
        verdict = type(error).__name__
    reply.write(json.dumps({"verdict": verdict}).encode() + b"\n")


RUN = {"program": run_program, "calls": answer_calls, "tests": run_tests}


def _find(scope: dict, name: str):
    """A function of the program, or a method of its class Solution."""
    return scope[name] if name in scope else getattr(scope["Solution"](), name)


# ---- plain values as JSON: all that passes between two guards ----


def encode(value: object) -> object:
    """JSON of a plain value; an object becomes its class's name and its attributes.

    >>> encode((1, {2}))
    ['tuple', 1, ['set', 2]]
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        for kind in (bool, int, float, str):
            if isinstance(value, kind):
                return kind(value)
        return None
    for kind in (list, tuple, set, frozenset):
        if isinstance(value, kind):
            return [kind.__name__, *map(encode, value)]
    if isinstance(value, dict):
        return ["dict", *([encode(k), encode(v)] for k, v in value.items())]
    if isinstance(value, complex):
        return ["complex", value.real, value.imag]
    if isinstance(value, (bytes, bytearray)):
        return ["bytes", value.hex()]
    if isinstance(value, type) and getattr(builtins, value.__name__, None) is value:
        return ["type", value.__name__]
    return ["object", type(value).__name__, encode(getattr(value, "__dict__", {}))]


def decode(value: object, scope: dict) -> object:
    """The value again; objects of classes that `scope` does not have stay unequal to everything.

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
    kinds = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}
    return kinds[kind](decode(item, scope) for item in rest)
