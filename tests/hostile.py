"""Programs that try to escape the sandbox, grouped by what they try; none may print "done".

{canary}: a file that anybody may read and write; {parent}: the process that started it; {port}: a
listening socket of that process; {number[NAME]}: a system call's number. Effects outside are found
by `tests.hostile_run`.
"""

import os

from tests.hostile_calls import KERNEL, PROCESSES

# x86_64, aarch64
_NUMBERS = {
    "add_key": (248, 217), "adjtimex": (159, 171), "bpf": (321, 280), "chroot": (161, 51),
    "clock_settime": (227, 112), "clone": (56, 220), "execveat": (322, 281),
    "fanotify_init": (300, 262), "finit_module": (313, 273), "fsopen": (430, 430),
    "init_module": (175, 105), "inotify_init1": (294, 26), "io_setup": (206, 0),
    "io_uring_setup": (425, 425), "ioprio_set": (251, 30), "kcmp": (312, 272),
    "kexec_load": (246, 104), "keyctl": (250, 219), "memfd_create": (319, 279), "mount": (165, 40),
    "move_mount": (429, 429), "mq_open": (240, 180), "msgget": (68, 186),
    "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265), "open_tree": (428, 428),
    "perf_event_open": (298, 241), "personality": (135, 92), "pidfd_open": (434, 434),
    "pidfd_send_signal": (424, 424), "pivot_root": (155, 41), "prctl": (157, 167),
    "prlimit64": (302, 261), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "ptrace": (101, 117), "reboot": (169, 142), "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240), "sched_setaffinity": (203, 122), "seccomp": (317, 277),
    "semget": (64, 190), "setdomainname": (171, 162), "sethostname": (170, 161),
    "setns": (308, 268), "setpgid": (109, 154), "setpriority": (141, 140), "setsid": (112, 157),
    "settimeofday": (164, 170), "shmget": (29, 194), "swapon": (167, 224), "syslog": (103, 116),
    "tgkill": (234, 131), "timer_create": (222, 107), "tkill": (200, 130), "umount2": (166, 39),
    "unshare": (272, 97), "userfaultfd": (323, 282),
}  # fmt: skip
NUMBERS = {name: numbers[os.uname().machine == "aarch64"] for name, numbers in _NUMBERS.items()}

# `call` prints "done" unless the sandbox refuses: arguments that the kernel would refuse as well
# make a call harmless here and its answer another one.
PRELUDE = """
import ctypes, fcntl, os, signal, sys, time
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
def call(number, *args):
    ctypes.set_errno(0)
    result = libc.syscall(number, *(ctypes.c_long(a) if isinstance(a, int) else a for a in args))
    if result != -1 or ctypes.get_errno() not in (1, 38):
        print("done", number, result, ctypes.get_errno())
def attempt(act, *args):
    try:
        act(*args)
        print("done", act, args)
    except OSError:
        pass
"""

FILES = {
    "read a file": "print(open({canary!r}).read())",
    "write a file": "attempt(open, {canary!r}, 'w')",
    "append to a file": """
open({canary!r}, 'a').write('done')
print('done')
""",
    "truncate a file": "attempt(os.truncate, {canary!r}, 0)",
    "delete a file": "attempt(os.unlink, {canary!r})",
    "rename a file": "attempt(os.rename, {canary!r}, {canary!r} + '2')",
    "change a file's rights": """
attempt(os.chmod, {canary!r}, 0)
attempt(os.chown, {canary!r}, 1, 1)
""",
    "change a file's times": "attempt(os.utime, {canary!r}, (1, 1))",
    "change a file's attributes": "attempt(os.setxattr, {canary!r}, 'user.a', b'done')",
    "a symbolic link": """
attempt(os.symlink, '/', {canary!r} + '3')
attempt(os.symlink, '/', '/tmp/l')
attempt(os.symlink, {canary!r}, '/dev/l')
""",
    "a hard link": "attempt(os.link, {canary!r}, {canary!r} + '4')",
    "a folder": """
attempt(os.mkdir, {canary!r} + '5')
attempt(os.mkdir, '/x')
attempt(os.mkdir, '/tmp/x')
""",
    "a device": """
attempt(os.mknod, '/x', 0o20666, os.makedev(1, 1))
attempt(os.mkfifo, '/x')
""",
    "many empty files": """
for folder in ('/', '/tmp', '/dev', '/dev/shm', '/sandbox', '/root', '/etc'):
    for i in range(9): attempt(open, f'{{folder}}/{{i}}', 'w')
""",
    "a large file": """
open('/tmp/big', 'wb').write(bytes(200 << 20))
print('done')
""",
    "shared memory as a file": "attempt(open, '/dev/shm/done', 'w')",
    "read a file by O_PATH": """
fd = os.open({canary!r}, os.O_PATH)
print(open(f'/proc/self/fd/{{fd}}').read())
""",
    "read a file by the root of a process": """
for p in ('1', 'self', '{parent}', 'thread-self'):
    attempt(lambda: open(f'/proc/{{p}}/root' + {canary!r}).read())
""",
    "homes": """
for folder in ('/home', '/tmp', '/var', '/run', '/etc/ssl'): attempt(os.listdir, folder)
attempt(open, '/root/.bashrc')
attempt(open, os.path.expanduser('~/.bashrc'))
""",
    "passwords": """
attempt(open, '/etc/passwd')
attempt(open, '/etc/shadow')
""",
    "installed packages": """
import pip
print('done')
""",
    "a disk": """
for d in ('vda', 'sda', 'mem', 'kmsg', 'port', 'kvm', 'fuse', 'ptmx', 'tty', 'loop-control'):
    attempt(os.open, f'/dev/{{d}}', os.O_RDWR | os.O_NOCTTY)
""",
}

NETWORK = {
    "connect": """
import socket
socket.create_connection(('127.0.0.1', {port}))
print('done')
""",
    "UDP": """
import socket
socket.socket(2, 2).sendto(b'x', ('127.0.0.1', {port}))
print('done')
""",
    "sockets of all families": """
import socket
for family in range(48):
    for kind in range(1, 11): attempt(socket.socket, family, kind)
""",
    "a pair of sockets": """
import socket
attempt(socket.socketpair)
""",
    "names": """
import socket
attempt(socket.gethostbyname, 'localhost')
attempt(socket.getaddrinfo, 'localhost', 80)
""",
}

RESOURCES = {
    "3 GB": """
x = bytearray(3 << 30)
print('done')
""",
    "3 GB in pieces": """
x = []
while len(x) < 3000: x.append(bytearray(1 << 20))
print('done')
""",
    "3 GB of maps": """
import mmap
x = [mmap.mmap(-1, 1 << 26) for _ in range(48)]
print('done')
""",
    "1000 pipes": """
x = [os.pipe() for _ in range(1000)]
print('done')
""",
    "large pipes": """
r, w = os.pipe()
attempt(fcntl.fcntl, w, 1031, 1 << 20)
""",
    "recursion": """
def f(): f()
sys.setrecursionlimit(10**9)
f()
print('done')
""",
    "a crash": """
ctypes.string_at(0)
print('done')
""",
    "an abort": """
os.abort()
print('done')
""",
    "flood": "while True: print('x' * 1000)",
    "stop": """
signal.raise_signal(signal.SIGTERM)
print('done')
""",
}

# Each of these uses all of its processor or waiting time.
SLOW = {
    "spin": "while True: pass",
    "ignore signals": """
for s in range(1, 65):
    try: signal.signal(s, signal.SIG_IGN)
    except (OSError, ValueError): pass
while True: pass
""",
    "flood stderr": "while True: sys.stderr.write('x' * 1000)",
    "close its output and go on": """
for fd in (0, 1, 2): os.close(fd)
while True: pass
""",
    "a thread that stays": """
import threading
threading.Thread(target=lambda: [0 for _ in iter(int, 1)]).start()
""",
    "a stop of itself": """
signal.raise_signal(signal.SIGSTOP)
print('done')
""",
}

ENDLESS = ("spin", "ignore signals", "close its output and go on")

# Three that once worked. {touched}: a file that does not exist, and must not afterwards.
ESCAPES = {
    "a kernel setting that names a program for root, then a crash": """
for pattern in ("kernel/core_pattern", "kernel/modprobe"):
    try:
        open("/proc/sys/" + pattern, "w").write("|/usr/bin/touch {touched}")
        print("done")
    except OSError:
        pass
ctypes.string_at(0)
""",
    "signals to the owner of a descriptor": """
pids, frame = {{{parent}, 1}}, sys._getframe()
while frame:
    for value in list(frame.f_locals.values()):
        if isinstance(value, dict):
            pids |= {{v for v in value.values() if type(v) is int and v > 1}}
    frame = frame.f_back
read, write = os.pipe()
for pid in pids:
    for number in (10, 23, 15, 19, 9):
        for command, argument in ((8, pid), (10, number), (4, os.O_ASYNC)):
            try:
                fcntl.fcntl(read, command, argument)
                print("done", command, argument)
            except OSError:
                pass
        os.write(write, b"x")
""",
    "code for the first process of the namespace": """
for pid in (1, {parent}, "self"):
    for name, mode in (("syscall", "rb"), ("maps", "rb"), ("mem", "r+b")):
        attempt(open, f"/proc/{{pid}}/{{name}}", mode)
for pid in (1, {parent}):
    call({number[ptrace]}, 16, pid, 0, 0)
    call({number[process_vm_writev]}, pid, 0, 0, 0, 0, 0)
""",
}

GROUPS = {
    "files": FILES,
    "processes": PROCESSES,
    "kernel": KERNEL,
    "network": NETWORK,
    "resources": RESOURCES,
}
