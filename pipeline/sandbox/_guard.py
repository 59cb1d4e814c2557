"""What stands between a program and the machine. Run as a script, by `pipeline.sandbox.run`.

    python -I -S -B _guard.py SPEC_FD

reads its orders as JSON from the file SPEC_FD, gives up what a program does not need, and then runs
the program inside this same interpreter:

    rlimits    CPU seconds, memory, stack, no files written, no core dump
    Landlock   of all files, only the standard library and the shared libraries can be read, and
               nothing can be written: docs.kernel.org/userspace-api/landlock.html
    seccomp    a list of system calls; every other one is refused. No socket, no fork, no exec, no
               signal to another process, no mount, no ptrace

Nothing here decides whether a program is right: what the program finds in this process, it may
have. Every step that cannot be taken ends the process before the program starts.
"""

import builtins
import ctypes
import json
import os
import platform
import resource
import signal
import struct
import sys

# Numbers of the system calls that an interpreter needs: (x86_64, aarch64), None where it has none.
ALLOWED = {
    "read": (0, 63), "write": (1, 64), "readv": (19, 65), "writev": (20, 66), "pread64": (17, 67),
    "close": (3, 57), "fstat": (5, 80), "stat": (4, None), "lstat": (6, None),
    "newfstatat": (262, 79), "statx": (332, 291), "lseek": (8, 62), "mmap": (9, 222),
    "mprotect": (10, 226), "munmap": (11, 215), "mremap": (25, 216), "madvise": (28, 233),
    "brk": (12, 214), "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139), "sigaltstack": (131, 132), "fcntl": (72, 25), "dup": (32, 23),
    "dup2": (33, None), "dup3": (292, 24), "pipe": (22, None), "pipe2": (293, 59),
    "poll": (7, None), "ppoll": (271, 73), "select": (23, None), "pselect6": (270, 72),
    "getpid": (39, 172), "gettid": (186, 178), "getuid": (102, 174), "geteuid": (107, 175),
    "getgid": (104, 176), "getegid": (108, 177), "getrusage": (98, 165), "times": (100, 153),
    "clock_gettime": (228, 113), "clock_getres": (229, 114), "clock_nanosleep": (230, 115),
    "nanosleep": (35, 101), "gettimeofday": (96, 169), "time": (201, None), "futex": (202, 98),
    "set_robust_list": (273, 99), "get_robust_list": (274, 100), "rseq": (334, 293),
    "set_tid_address": (218, 96), "sched_yield": (24, 124), "sched_getaffinity": (204, 123),
    "arch_prctl": (158, None), "exit": (60, 93), "exit_group": (231, 94), "getrandom": (318, 278),
    "openat": (257, 56), "open": (2, None), "access": (21, None), "faccessat": (269, 48),
    "faccessat2": (439, 439), "readlink": (89, None), "readlinkat": (267, 78),
    "getdents64": (217, 61), "getcwd": (79, 17), "uname": (63, 160), "sysinfo": (99, 179),
    "getrlimit": (97, 163), "restart_syscall": (219, 128), "membarrier": (324, 283),
    "setitimer": (38, 103),
}  # fmt: skip
IOCTL, CLONE, CLONE3, TGKILL, PRLIMIT = (16, 29), (56, 220), (435, 435), (234, 131), (302, 261)
TERMINAL_QUESTIONS = (0x5401, 0x5413, 0x5450, 0x5451)  # TCGETS, TIOCGWINSZ, FIONCLEX, FIOCLEX
CLONE_THREAD = 0x00010000
MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column above, audit number

EPERM, ENOSYS = 1, 38
ALLOW, ERRNO, KILL = 0x7FFF0000, 0x00050000, 0x80000000
LOAD, EQUAL, ABOVE, SET, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 1, 38, 22, 2
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
READ_FILE, READ_DIR = 1 << 2, 1 << 3
NOBODY = 65534
PROTOCOL_LINE = 1 << 20  # bytes of one question or answer between two guards

libc = ctypes.CDLL(None, use_errno=True)


def main(spec_fd: int) -> None:
    """Read the orders, lock the door, run the program."""
    with os.fdopen(spec_fd, "rb") as file:
        spec = json.loads(file.read())
    _check(libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "PR_SET_PDEATHSIG")
    if spec["parent"] and os.getppid() != spec["parent"]:
        os._exit(1)  # it died before it could be watched
    sys.set_int_max_str_digits(100_000)
    sys.setrecursionlimit(10_000)
    _become_nobody()
    _limit(spec)
    _check(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "PR_SET_NO_NEW_PRIVS")
    if spec["landlock"]:
        restrict_files([*spec["readable"], *library_folders()])
    restrict_calls()
    RUN[spec["mode"]](spec)


# ---- what is given up ----


def _become_nobody() -> None:
    """Give up root, where the standard library can be read by everybody."""
    if os.getuid() != 0 or not _everybody_reads(os.path.dirname(os.__file__)):
        return
    try:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    except OSError:
        pass  # in a user namespace there is one user only, who is root there and nobody outside


def _everybody_reads(folder: str) -> bool:
    while True:
        if os.stat(folder).st_mode & 0o005 != 0o005:
            return False
        if folder == "/":
            return True
        folder = os.path.dirname(folder)


def _limit(spec: dict) -> None:
    for what, amount in (
        (resource.RLIMIT_CPU, int(spec["seconds"]) + 1),
        (resource.RLIMIT_AS, spec["memory_bytes"]),
        (resource.RLIMIT_STACK, 64 << 20),  # threads too: so memory bounds how many there are
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(what)[1]
        amount = amount if hard == resource.RLIM_INFINITY else min(amount, hard)
        resource.setrlimit(what, (amount, amount))


def library_folders() -> list[str]:
    """Where the interpreter finds the standard library and its shared libraries."""
    python = [os.path.dirname(os.__file__), os.path.join(sys.base_prefix, "lib")]
    return [*python, "/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache"]


def restrict_files(readable: list[str]) -> None:
    """Landlock: these can be read, nothing else, and nothing written."""
    abi = libc.syscall(CREATE_RULESET, None, 0, 1)
    _check(abi, "Landlock")
    rights = 13 + (abi >= 2) + (abi >= 3) + (abi >= 5)  # refer, truncate, ioctl came later
    handled = ctypes.create_string_buffer(struct.pack("=Q", (1 << rights) - 1))
    ruleset = libc.syscall(CREATE_RULESET, handled, 8, 0)
    _check(ruleset, "Landlock ruleset")
    for path in readable:
        if os.path.exists(path):
            place = os.open(path, os.O_PATH | os.O_CLOEXEC)
            may = READ_FILE | READ_DIR if os.path.isdir(path) else READ_FILE
            rule = ctypes.create_string_buffer(struct.pack("=Qi", may, place))
            _check(libc.syscall(ADD_RULE, ruleset, 1, rule, 0), f"Landlock rule for {path}")
            os.close(place)
    _check(libc.syscall(RESTRICT_SELF, ruleset, 0), "Landlock")
    os.close(ruleset)


def restrict_calls() -> None:
    """seccomp: the calls of `ALLOWED`, and of some others what is harmless about them."""
    column, machine = MACHINES[platform.machine()]
    pid = os.getpid()
    code = [
        (LOAD, 0, 0, 4), (EQUAL, 1, 0, machine), (RETURN, 0, 0, KILL),
        (LOAD, 0, 0, 0), (ABOVE, 0, 1, 0x40000000), (RETURN, 0, 0, KILL),  # the other x86 ABI
    ]  # fmt: skip
    for numbers in ALLOWED.values():
        if numbers[column] is not None:
            code += [(EQUAL, 0, 1, numbers[column]), (RETURN, 0, 0, ALLOW)]
    # glibc falls back to clone, whose flags a filter can read.
    code += [(EQUAL, 0, 1, CLONE3[column]), (RETURN, 0, 0, ERRNO | ENOSYS)]
    for number, argument, test, values in (
        (CLONE[column], 0, SET, (CLONE_THREAD,)),
        (TGKILL[column], 0, EQUAL, (pid,)),  # abort() raises its signal this way
        (PRLIMIT[column], 0, EQUAL, (0, pid)),
        (IOCTL[column], 1, EQUAL, TERMINAL_QUESTIONS),
    ):
        tests = [step for v in values for step in ((test, 0, 1, v), (RETURN, 0, 0, ALLOW))]
        tests = [(LOAD, 0, 0, 16 + 8 * argument), *tests, (RETURN, 0, 0, ERRNO | EPERM)]
        code += [(EQUAL, 0, len(tests), number), *tests]
    code.append((RETURN, 0, 0, ERRNO | EPERM))
    packed = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in code))
    header = struct.pack("HxxxxxxP", len(code), ctypes.addressof(packed))
    program = ctypes.create_string_buffer(header)
    _check(libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program, 0, 0), "seccomp")


def _check(result: int, what: str) -> None:
    if result < 0:
        sys.stderr.write(f"guard: {what} is not to be had: {os.strerror(ctypes.get_errno())}\n")
        os._exit(97)


# ---- what is run ----


def run_program(spec: dict) -> None:
    """The program as a script: stdin in, stdout out."""
    exec(compile(spec["program"], "<program>", "exec"), {"__name__": "__main__"})


def answer_calls(spec: dict) -> None:
    """Define what the program defines, then answer calls of its function, one a line, until the
    questions end. What it prints goes nowhere."""
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


if __name__ == "__main__":
    main(int(sys.argv[1]))
