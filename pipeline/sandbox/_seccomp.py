"""The system calls that a program may make: seccomp filters in classic BPF.

`bounds()` applies to the processes of bubblewrap inside the namespaces and allows what they and the
confined process need to set themselves up. `confine()` is the last step of the confined process and
allows what an interpreter needs. Calls that are not listed are refused with EPERM.
"""

import ctypes
import functools
import os
import struct

# Numbers of the system calls that an interpreter needs: (x86_64, aarch64), None where it has none.
ALLOWED = {
    "read": (0, 63), "write": (1, 64), "readv": (19, 65), "writev": (20, 66), "pread64": (17, 67),
    "close": (3, 57), "fstat": (5, 80), "stat": (4, None), "lstat": (6, None),
    "newfstatat": (262, 79), "statx": (332, 291), "lseek": (8, 62), "mmap": (9, 222),
    "mprotect": (10, 226), "munmap": (11, 215), "mremap": (25, 216), "madvise": (28, 233),
    "brk": (12, 214), "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139), "sigaltstack": (131, 132), "dup": (32, 23), "dup2": (33, None),
    "dup3": (292, 24), "pipe": (22, None), "pipe2": (293, 59), "poll": (7, None),
    "ppoll": (271, 73), "select": (23, None), "pselect6": (270, 72), "getpid": (39, 172),
    "gettid": (186, 178), "getuid": (102, 174), "geteuid": (107, 175), "getgid": (104, 176),
    "getegid": (108, 177), "getrusage": (98, 165), "times": (100, 153),
    "clock_gettime": (228, 113), "clock_getres": (229, 114), "clock_nanosleep": (230, 115),
    "nanosleep": (35, 101), "gettimeofday": (96, 169), "time": (201, None), "futex": (202, 98),
    "set_robust_list": (273, 99), "rseq": (334, 293), "set_tid_address": (218, 96),
    "sched_yield": (24, 124), "sched_getaffinity": (204, 123), "arch_prctl": (158, None),
    "exit": (60, 93), "exit_group": (231, 94), "getrandom": (318, 278), "openat": (257, 56),
    "open": (2, None), "access": (21, None), "faccessat": (269, 48), "faccessat2": (439, 439),
    "readlink": (89, None), "readlinkat": (267, 78), "getdents64": (217, 61), "getcwd": (79, 17),
    "uname": (63, 160), "sysinfo": (99, 179), "getrlimit": (97, 163),
    "restart_syscall": (219, 128), "membarrier": (324, 283), "setitimer": (38, 103),
}  # fmt: skip
# What the confined process needs besides to set itself up, and bubblewrap to start and await it.
SETUP = {
    "execve": (59, 221), "wait4": (61, 260), "prctl": (157, 167), "seccomp": (317, 277),
    "prlimit64": (302, 261), "setgroups": (116, 159), "setgid": (106, 144), "setuid": (105, 146),
    "setresgid": (119, 149), "setresuid": (117, 147), "capset": (126, 91),
    "landlock_create_ruleset": (444, 444), "landlock_add_rule": (445, 445),
    "landlock_restrict_self": (446, 446), "close_range": (436, 436),
}  # fmt: skip
FCNTL, IOCTL, CLONE, CLONE3 = (72, 25), (16, 29), (56, 220), (435, 435)
TGKILL, PRLIMIT = (234, 131), (302, 261)
# F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_DUPFD_CLOEXEC, F_GETPIPE_SZ. Not F_SETOWN and the like: the
# kernel sends the owner of a descriptor a signal that the caller chooses.
DESCRIPTOR_COMMANDS = (0, 1, 2, 3, 1030, 1032)
F_SETFL, O_ASYNC = 4, 0x2000
DESCRIPTOR_REQUESTS = (0x5401, 0x5413, 0x5450, 0x5451)  # TCGETS, TIOCGWINSZ, FIONCLEX, FIOCLEX
# What pthread_create asks for, in glibc and in musl: a thread of this process and nothing else.
NEW_THREAD = (0x3D0F00, 0x7D0F00)
MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column above, audit number

EPERM, ENOSYS = 1, 38
ALLOW, ERRNO, KILL = 0x7FFF0000, 0x00050000, 0x80000000
LOAD, EQUAL, ABOVE, SET, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 22, 2
REFUSE = (RETURN, 0, 0, ERRNO | EPERM)

Step = tuple[int, int, int, int]


@functools.cache
def bounds() -> bytes:
    """The filter for bubblewrap's processes and for the confined process while it sets up.

    Signals go no further than the process namespace, and no new process can be made.
    """
    rules = [(FCNTL, _descriptor_rule()), (IOCTL, _one_of(1, DESCRIPTOR_REQUESTS))]
    rules += [(CLONE, _one_of(0, NEW_THREAD)), (TGKILL, [(RETURN, 0, 0, ALLOW)])]
    return _filter([*ALLOWED.values(), *SETUP.values()], rules)


def confine(libc: ctypes.CDLL) -> int:
    """Apply the filter for programs to this process, for good; below 0 where that failed."""
    own = os.getpid()
    rules = [
        (FCNTL, _descriptor_rule()),
        (IOCTL, _one_of(1, DESCRIPTOR_REQUESTS)),
        (CLONE, _one_of(0, NEW_THREAD)),
        (TGKILL, _one_of(0, (own,))),  # abort() raises its signal this way
        (PRLIMIT, _one_of(0, (0, own))),
    ]
    code = _filter(list(ALLOWED.values()), rules)
    packed = ctypes.create_string_buffer(code)
    header = struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(packed))
    program = ctypes.create_string_buffer(header)
    return libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program, 0, 0)


def _filter(allowed: list[tuple[int, int | None]], rules: list) -> bytes:
    """BPF that allows some calls, and others by a rule about an argument; 8 bytes a step."""
    column, machine = MACHINES[os.uname().machine]
    code: list[Step] = [
        (LOAD, 0, 0, 4), (EQUAL, 1, 0, machine), (RETURN, 0, 0, KILL),
        (LOAD, 0, 0, 0), (ABOVE, 0, 1, 0x40000000), (RETURN, 0, 0, KILL),  # the other x86 ABI
    ]  # fmt: skip
    for numbers in allowed:
        if (number := numbers[column]) is not None:
            code += [(EQUAL, 0, 1, number), (RETURN, 0, 0, ALLOW)]
    # A filter cannot read the flags of clone3; without it glibc falls back to clone.
    code += [(EQUAL, 0, 1, CLONE3[column]), (RETURN, 0, 0, ERRNO | ENOSYS)]
    for numbers, tests in rules:
        code += [(EQUAL, 0, len(tests), numbers[column]), *tests]
    return b"".join(struct.pack("=HBBI", *step) for step in [*code, REFUSE])


def _argument(index: int) -> Step:
    """Load the low half of an argument; the kernel reads no more of any that is tested here."""
    return (LOAD, 0, 0, 16 + 8 * index)


def _one_of(index: int, values: tuple[int, ...]) -> list[Step]:
    tests = [step for v in values for step in ((EQUAL, 0, 1, v), (RETURN, 0, 0, ALLOW))]
    return [_argument(index), *tests, REFUSE]


def _descriptor_rule() -> list[Step]:
    """fcntl: the harmless commands, and F_SETFL without O_ASYNC."""
    tests = _one_of(1, DESCRIPTOR_COMMANDS)[:-1]
    set_flags = [(EQUAL, 0, 3, F_SETFL), _argument(2), (SET, 1, 0, O_ASYNC), (RETURN, 0, 0, ALLOW)]
    return [*tests, *set_flags, REFUSE]
