"""Give up root, capabilities and resources for good, before a program runs."""

import ctypes
import errno
import os
import resource
import struct
import sys

PR_SET_DUMPABLE, PR_SET_KEEPCAPS = 4, 8
CAP_DAC_READ_SEARCH = 2
CAPABILITY_VERSION_3 = 0x20080522
NOBODY = 65534


def become_nobody(libc: ctypes.CDLL, needed: list[str]) -> int:
    """Give up root and every capability; below 0 where that failed.

    Where root alone can read a folder that is needed, CAP_DAC_READ_SEARCH stays. It allows reading
    only, and only of what Landlock allows.
    """
    keep = 0
    if os.getuid() == 0:
        everybody = all(_everybody_reads(path) for path in needed if os.path.isdir(path))
        keep = 0 if everybody else 1 << CAP_DAC_READ_SEARCH
        libc.prctl(PR_SET_KEEPCAPS, 1 if keep else 0, 0, 0, 0)
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
        except OSError as error:
            # EINVAL: a user namespace without such a user, whose root is another user outside.
            if error.errno != errno.EINVAL:
                ctypes.set_errno(error.errno or errno.EINVAL)
                return -1
    # effective, permitted, inheritable, for capabilities below 32 and then for the others
    sets = ctypes.create_string_buffer(struct.pack("=6I", keep, keep, 0, 0, 0, 0))
    return libc.capset(struct.pack("=Ii", CAPABILITY_VERSION_3, 0), sets)


def limit(libc: ctypes.CDLL, seconds: float, memory_bytes: int) -> None:
    """Bound processor time and memory; no file is written, and no core dump made or piped."""
    for what, amount in (
        (resource.RLIMIT_CPU, int(seconds) + 1),
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_STACK, 64 << 20),  # of each thread, so memory bounds their number
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(what)[1]
        amount = amount if hard == resource.RLIM_INFINITY else min(amount, hard)
        resource.setrlimit(what, (amount, amount))
    # RLIMIT_CORE does not stop the kernel from starting the program that core_pattern names.
    libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)


def library_folders() -> list[str]:
    """Where the interpreter finds the standard library and its shared libraries."""
    python = [os.path.dirname(os.__file__), os.path.join(sys.base_prefix, "lib")]
    return [*python, "/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache"]


def _everybody_reads(folder: str) -> bool:
    while True:
        if os.stat(folder).st_mode & 0o005 != 0o005:
            return False
        if folder == "/":
            return True
        folder = os.path.dirname(folder)
