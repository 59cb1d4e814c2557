"""Landlock: restrict the files that a process may open and the processes it may signal.

docs.kernel.org/userspace-api/landlock.html. What the running kernel's ABI cannot restrict is left
to seccomp: the filter has no socket and no signal to another process either.
"""

import ctypes
import os
import struct

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
CREATE_RULESET_VERSION = 1
WRITE_FILE, READ_FILE, READ_DIR = 1 << 1, 1 << 2, 1 << 3
BIND_TCP, CONNECT_TCP = 1 << 0, 1 << 1
SCOPE_ABSTRACT_UNIX_SOCKET, SCOPE_SIGNAL = 1 << 0, 1 << 1
DEVICES = {"/dev/null": READ_FILE | WRITE_FILE, "/dev/urandom": READ_FILE}


def version(libc: ctypes.CDLL) -> int:
    """The Landlock ABI of the kernel, below 0 where it has none; errno has the reason."""
    return libc.syscall(CREATE_RULESET, None, 0, CREATE_RULESET_VERSION)


def restrict(libc: ctypes.CDLL, readable: list[str]) -> int:
    """Let this process open only these files, and those below these folders, for reading; no TCP
    port, and no signal to a process outside. Below 0 where a step failed; errno has the reason."""
    abi = version(libc)
    if abi < 0:
        return abi
    files = (1 << 13 + (abi >= 2) + (abi >= 3) + (abi >= 5)) - 1  # refer, truncate, ioctl
    attributes = struct.pack("=Q", files)
    if abi >= 4:
        attributes += struct.pack("=Q", BIND_TCP | CONNECT_TCP)
    if abi >= 6:
        attributes += struct.pack("=Q", SCOPE_ABSTRACT_UNIX_SOCKET | SCOPE_SIGNAL)
    handled = ctypes.create_string_buffer(attributes, len(attributes))
    ruleset = libc.syscall(CREATE_RULESET, handled, len(attributes), 0)
    if ruleset < 0:
        return ruleset
    for path in [*readable, *DEVICES]:
        if os.path.exists(path):
            folder = READ_FILE | READ_DIR if os.path.isdir(path) else READ_FILE
            if _allow(libc, ruleset, path, DEVICES.get(path, folder)) < 0:
                return -1
    result = libc.syscall(RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)
    return result


def _allow(libc: ctypes.CDLL, ruleset: int, path: str, rights: int) -> int:
    place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    rule = ctypes.create_string_buffer(struct.pack("=Qi", rights, place))
    result = libc.syscall(ADD_RULE, ruleset, 1, rule, 0)
    os.close(place)
    return result
