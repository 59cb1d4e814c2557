"""Hostile programs that reach for other processes and for the kernel; see `tests.hostile`."""

PROCESSES = {
    "its environment": "print('done' if 'SECRET_TOKEN' in os.environ else '')",
    "the environment of others": """
for p in ('1', '{parent}', 'self'):
    attempt(open, f'/proc/{{p}}/environ')
    attempt(open, f'/proc/{{p}}/cmdline')
""",
    "a list of processes": """
attempt(os.listdir, '/proc')
attempt(os.listdir, '/proc/{parent}/fd')
""",
    "the memory of the parent": """
attempt(open, '/proc/{parent}/mem', 'r+b')
attempt(open, '/proc/{parent}/maps')
""",
    "its own memory as a file": """
attempt(open, '/proc/self/mem', 'r+b')
attempt(open, '/proc/self/maps')
""",
    "process_vm_readv": """
for pid in ({parent}, 1): call({number[process_vm_readv]}, pid, 0, 0, 0, 0, 0)
""",
    "process_vm_writev": """
for pid in ({parent}, 1): call({number[process_vm_writev]}, pid, 0, 0, 0, 0, 0)
""",
    "ptrace": """
for pid in ({parent}, 1, 0):
    for request in (0, 16, 0x4206):
        call({number[ptrace]}, request, pid, 0, 0)
""",
    "kcmp": "call({number[kcmp]}, os.getpid(), {parent}, 0, 0, 0)",
    "pidfd": """
for pid in ({parent}, 1): call({number[pidfd_open]}, pid, 0)
call({number[pidfd_send_signal]}, 0, 0, 0, 0)
""",
    "kill": "for pid in ({parent}, 1, -1, 0, -{parent}): attempt(os.kill, pid, 0)",
    "kill everything": "attempt(os.kill, -1, 9)",
    "tkill": """
call({number[tkill]}, {parent}, 0)
call({number[tgkill]}, {parent}, {parent}, 0)
""",
    "queue a signal": """
call({number[rt_sigqueueinfo]}, {parent}, 0, bytes(128))
call({number[rt_tgsigqueueinfo]}, {parent}, {parent}, 0, bytes(128))
""",
    "a timer that signals": "call({number[timer_create]}, 0, 0, 0)",
    "the owner of a terminal": """
for fd in (0, 1, 2):
    for request in (0x5410, 0x5412, 0x540e, 0x5452, 0x8901, 0x8902):
        attempt(fcntl.ioctl, fd, request, (8).to_bytes(4, 'little'))
""",
    "a notice of changes": """
attempt(fcntl.fcntl, os.open(os.path.dirname(os.__file__), 0), 1026, 1)
attempt(fcntl.fcntl, os.open(os.__file__, 0), 1024, 0)
""",
    "its session": """
call({number[setsid]})
call({number[setpgid]}, 0, 0)
""",
    "priority of the parent": """
call({number[setpriority]}, 0, {parent}, 19)
call({number[setpriority]}, 2, os.getuid(), 19)
call({number[ioprio_set]}, 1, {parent}, 3 << 13)
""",
    "limits of the parent": """
for what in (0, 7, 9): call({number[prlimit64]}, {parent}, what, bytes(16), 0)
""",
    "processors of the parent": """
call({number[sched_setaffinity]}, {parent}, 8, (1).to_bytes(8, 'little'))
""",
    "lift its limits": """
import resource as r
for what in (r.RLIMIT_FSIZE, r.RLIMIT_AS, r.RLIMIT_CPU, r.RLIMIT_NOFILE):
    try: r.setrlimit(what, (-1, -1)); print('done')
    except (OSError, ValueError): pass
""",
    "prctl": "for option in (1, 4, 8, 24, 36, 59): call({number[prctl]}, option, 0, 0, 0, 0)",
    "forks": "for _ in range(200): attempt(os.fork)",
    "vfork and clone": """
for flags in (17, 0x4111, 0x10000000, 0x40000000, 0x20000000, 0):
    call({number[clone]}, flags, 0, 0, 0, 0)
call(435, bytes(88), 88)
""",
    "a daemon": """
if os.fork() == 0:
    os.setsid()
    time.sleep(60)
print('done')
""",
    "subprocess": """
import subprocess
attempt(subprocess.run, ['/bin/true'])
""",
    "multiprocessing": """
import multiprocessing as m
attempt(m.Process(target=print, args=('done',)).start)
""",
    "a shell": "print('done' if os.system('true') == 0 else '')",
    "another program": """
attempt(os.execv, '/bin/echo', ['echo', 'done'])
attempt(os.execv, sys.executable, ['python'])
""",
    "a program from memory": """
call({number[memfd_create]}, b'x', 0)
call({number[execveat]}, -100, b'/bin/true', 0, 0, 0)
""",
    "inherited descriptors": """
for fd in range(3, 4096):
    attempt(os.fstat, fd)
""",
    "500 threads": """
import threading
for _ in range(500):
    threading.Thread(target=time.sleep, args=(9,), daemon=True).start()
print('done')
""",
}

KERNEL = {
    "sysctl": """
import itertools
for name in ('kernel/core_pattern', 'kernel/hostname', 'vm/drop_caches', 'kernel/modprobe',
    'kernel/randomize_va_space', 'kernel/sysrq', 'fs/file-max', 'net/ipv4/ip_forward'):
    attempt(os.open, f'/proc/sys/{{name}}', os.O_WRONLY)
attempt(os.open, '/proc/sysrq-trigger', os.O_WRONLY)
""",
    "sysfs": """
attempt(os.listdir, '/sys')
attempt(os.listdir, '/sys/kernel')
attempt(os.listdir, '/sys/fs/cgroup')
""",
    "cgroups": """
attempt(os.mkdir, '/sys/fs/cgroup/done')
attempt(open, '/sys/fs/cgroup/cgroup.procs', 'w')
""",
    "OOM score": """
for p in ('self', '1', '{parent}'): attempt(open, f'/proc/{{p}}/oom_score_adj', 'w')
""",
    "a map of users": "for p in ('self', '1'): attempt(open, f'/proc/{{p}}/uid_map', 'w')",
    "unshare": """
for flags in (0x10000000, 0x20000, 0x40000000, 0x20000000, 0x2000000, 0x80):
    call({number[unshare]}, flags)
""",
    "setns": "call({number[setns]}, 0, 0)",
    "mount": """
call({number[mount]}, b'done', b'/', b'tmpfs', 0, 0)
call({number[umount2]}, b'/', 2)
call({number[fsopen]}, b'proc', 0)
call({number[open_tree]}, -100, b'/', 1)
call({number[move_mount]}, -100, b'/', -100, b'/', 0)
""",
    "another root": """
call({number[chroot]}, b'/usr')
call({number[pivot_root]}, b'/', b'/')
""",
    "file handles": """
call({number[name_to_handle_at]}, -100, b'/', 0, 0, 0)
call({number[open_by_handle_at]}, -100, 0, 0)
""",
    "bpf": "call({number[bpf]}, 0, bytes(64), 64)",
    "perf": "call({number[perf_event_open]}, bytes(120), 0, -1, -1, 0)",
    "io_uring": """
call({number[io_uring_setup]}, 1, bytes(120))
call(426, 0, 0, 0, 0, 0, 0)
""",
    "asynchronous reads": "call({number[io_setup]}, 1, bytes(8))",
    "userfaultfd": "call({number[userfaultfd]}, 1)",
    "inotify": """
call({number[inotify_init1]}, 0)
call({number[fanotify_init]}, 0, 0)
""",
    "keys": """
call({number[add_key]}, b'user', b'done-key', b'x', 1, -4)
call({number[keyctl]}, 0, -4, 1)
""",
    "System V memory": "call({number[shmget]}, 0xD0E, 4096, 0o1600)",
    "System V messages": """
call({number[msgget]}, 0xD0E, 0o1600)
call({number[semget]}, 0xD0E, 1, 0o1600)
""",
    "POSIX messages": "call({number[mq_open]}, b'done', 0o102, 0o600, 0)",
    "the clock": """
call({number[clock_settime]}, 0, bytes(16))
call({number[settimeofday]}, bytes(16), 0)
call({number[adjtimex]}, bytes(256))
""",
    "the host's name": """
call({number[sethostname]}, b'done', 4)
call({number[setdomainname]}, b'done', 4)
""",
    "the kernel's log": "call({number[syslog]}, 3, bytes(64), 64)",
    "a kernel module": """
call({number[init_module]}, 0, 0, b'')
call({number[finit_module]}, 0, b'', 0)
""",
    "another kernel": """
call({number[kexec_load]}, 0, 0, 0, 0)
call({number[reboot]}, 0, 0, 0, 0)
""",
    "swap": "call({number[swapon]}, b'/none', 0)",
    "personality": "call({number[personality]}, 0x0400000)",
    "another filter": "call({number[seccomp]}, 1, 0, 0)",
}
