"""Runs one program that nobody has read, inside the limits that it sets to its own process first.

Started by :mod:`frcli.evaluation.sandbox` as a script of its own, in an empty folder, with ``python -I``. Standard
input is one line of JSON (``limits``, ``word``) and the program; when the program has come to its end, ``word`` is
written to the file descriptor that the command line names. An early ``exit(0)`` does not
count; a program that set out to find the word could say it itself.

On Linux (x86-64 and AArch64) the kernel refuses sockets, new processes and signals to others (seccomp), and, from 5.13
on, writing outside the folder (Landlock). Python's audit hook, which refuses the same and more, is all there is
elsewhere: it stops accidents, not attacks.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import platform
import struct
import sys
import types
from typing import Any

_NUMBERS = {  # audit architecture; system calls by name
    "x86_64": (
        0xC000003E,
        {
            "socket": 41, "socketpair": 53, "fork": 57, "vfork": 58, "execve": 59, "kill": 62, "chmod": 90, "chown": 92,
            "lchown": 94, "ptrace": 101, "rt_sigqueueinfo": 129, "setpriority": 141, "tkill": 200,
            "sched_setaffinity": 203, "tgkill": 234, "fchownat": 260, "fchmodat": 268, "rt_tgsigqueueinfo": 297,
            "prlimit64": 302, "execveat": 322, "pidfd_send_signal": 424, "io_uring_setup": 425, "fchmodat2": 452,
            "clone": 56,
        },
    ),
    "aarch64": (
        0xC00000B7,
        {
            "socket": 198, "socketpair": 199, "execve": 221, "kill": 129, "fchmodat": 53, "fchownat": 54, "ptrace": 117,
            "sched_setaffinity": 122, "tkill": 130, "tgkill": 131, "rt_sigqueueinfo": 138, "setpriority": 140,
            "rt_tgsigqueueinfo": 240, "prlimit64": 261, "execveat": 281, "pidfd_send_signal": 424,
            "io_uring_setup": 425, "fchmodat2": 452, "clone": 220,
        },
    ),
}  # fmt: skip
_CLONE3, _CLONE_THREAD = 435, 0x00010000
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _MODE_FILTER = 38, 22, 2
_LOAD, _EQUAL, _ATLEAST, _BITS, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06  # BPF: ld abs word, jeq, jge, jset, ret
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT, _PATH_BENEATH = 444, 445, 446, 1
_WRITING = 1 << 1 | sum(1 << bit for bit in range(4, 13))  # write files, remove and make anything
_TRUNCATE, _TRUNCATE_SINCE = 1 << 14, 3  # a right of its own since the third version of Landlock
_LANDLOCK_VERSION = 1  # a flag

_REFUSED: tuple[str, ...] = (
    "socket.", "subprocess.", "ctypes.", "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "os.kill",
    "pty.", "winreg.", "webbrowser.", "ftplib.", "http.", "smtplib.", "urllib.",
)  # fmt: skip
_WRITES = {"os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.chmod"}
_WRITES |= {"os.chown", "os.utime", "shutil.rmtree", "shutil.move", "os.mkfifo", "os.mknod"}
_BOTH = {"os.rename", "os.link", "os.symlink", "shutil.move"}  # where the second path is written, too


def limit(limits: dict[str, int]) -> None:
    """Limit processor time (seconds), memory and file sizes (bytes) of this process, where the system can."""
    try:
        import resource
    except ImportError:  # Windows: the parent's clock is what is left
        return
    wanted = {
        resource.RLIMIT_CPU: limits["seconds"],
        resource.RLIMIT_FSIZE: limits["output"],
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NOFILE: 64,
    }
    if sys.platform != "darwin":  # which does not keep to it, and refuses to set it
        wanted[resource.RLIMIT_AS] = limits["memory"]
    for what, most in wanted.items():
        resource.setrlimit(what, (most, most))


def refuse_system_calls() -> bool:
    """Make the kernel refuse sockets, processes and signals; whether it does."""
    if sys.platform != "linux" or platform.machine() not in _NUMBERS:
        return False
    architecture, numbers = _NUMBERS[platform.machine()]
    clone = numbers["clone"]
    refused = [number for name, number in numbers.items() if name != "clone"]
    code: list[tuple[int, int, int, int]] = [
        (_LOAD, 0, 0, 4),  # seccomp_data.arch
        (_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, 0),  # seccomp_data.nr
    ]
    for number in refused:
        code += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ERRNO | errno.EPERM)]
    code += [
        (_ATLEAST, 0, 1, 0x40000000),  # x32: the same calls under other numbers
        (_RETURN, 0, 0, _ERRNO | errno.EPERM),
        (_EQUAL, 0, 1, _CLONE3),  # its flags cannot be seen from here: glibc then calls clone
        (_RETURN, 0, 0, _ERRNO | errno.ENOSYS),
        (_EQUAL, 0, 3, clone),
        (_LOAD, 0, 0, 16),  # the lower half of its first argument
        (_BITS, 1, 0, _CLONE_THREAD),
        (_RETURN, 0, 0, _ERRNO | errno.EPERM),
        (_RETURN, 0, 0, _ALLOW),
    ]
    program = b"".join(struct.pack("HBBI", *line) for line in code)
    buffer = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("HxxxxxxP", len(code), ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        return False
    return not libc.prctl(_PR_SET_SECCOMP, _MODE_FILTER, header, 0, 0)


def refuse_writing_outside(folder: str) -> bool:
    """Make the kernel refuse writing anywhere but in ``folder``; whether it does."""
    if sys.platform != "linux":
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    version = libc.syscall(_LANDLOCK_CREATE, None, ctypes.c_size_t(0), _LANDLOCK_VERSION)
    rights = _WRITING | (_TRUNCATE if version >= _TRUNCATE_SINCE else 0)
    handled = struct.pack("Q", rights)
    ruleset = libc.syscall(_LANDLOCK_CREATE, handled, ctypes.c_size_t(len(handled)), 0)
    if ruleset < 0:
        return False
    place = os.open(folder, os.O_PATH | os.O_DIRECTORY)
    rule = struct.pack("=Qi", rights, place)
    kept = libc.syscall(_LANDLOCK_ADD, ruleset, _PATH_BENEATH, rule, 0) == 0
    kept = kept and libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
    kept = kept and libc.syscall(_LANDLOCK_RESTRICT, ruleset, 0) == 0
    os.close(place)
    os.close(ruleset)
    return bool(kept)


def refuse_in_python(folder: str) -> None:
    """Make Python refuse the same, by its audit events."""
    inside = os.path.realpath(folder)
    flags = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
    realpath, fspath, separator = os.path.realpath, os.fspath, os.sep

    def is_outside(path: Any) -> bool:
        if isinstance(path, int):  # a descriptor that is open already
            return False
        real = realpath(os.fsdecode(fspath(path)))
        return not (real + separator).startswith(inside + separator)

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event.startswith(_REFUSED):
            raise PermissionError(f"{event} is not allowed here")
        if event == "open":
            path, mode, given = arguments
            writes = any(letter in mode for letter in "wax+") if isinstance(mode, str) else bool((given or 0) & flags)
            if path is not None and writes and is_outside(path):
                raise PermissionError(f"{path} is outside the folder")
        elif event in _WRITES:
            first = 1 if event == "os.symlink" else 0
            for path in arguments[first : 2 if event in _BOTH else 1]:
                if path is not None and is_outside(path):
                    raise PermissionError(f"{path} is outside the folder")

    sys.addaudithook(audit)


def main() -> None:
    """Read the order and the program, shut the doors, run the program, and say the word."""
    answer = int(sys.argv[1])
    order = json.loads(sys.stdin.readline())
    program = sys.stdin.read()
    code = compile(program, "program", "exec", dont_inherit=True)
    folder = os.getcwd()
    limit(order["limits"])
    refuse_writing_outside(folder)
    refuse_system_calls()
    refuse_in_python(folder)
    word = order["word"].encode()
    write = os.write
    module = types.ModuleType("program")  # what stands behind ``if __name__ == "__main__"`` is not asked for
    sys.modules["program"] = module
    exec(code, module.__dict__)
    write(answer, word)


if __name__ == "__main__":
    main()
