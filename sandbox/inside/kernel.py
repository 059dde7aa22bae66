"""System calls that Python 3.11 does not offer. Each raises OSError that names the call."""

from __future__ import annotations

import ctypes
import os
import signal
import struct

# unshare(2), clone(2)
NEW_MOUNTS = 0x00020000
NEW_CGROUP = 0x02000000
NEW_UTS = 0x04000000
NEW_IPC = 0x08000000
NEW_USER = 0x10000000
NEW_PID = 0x20000000
NEW_NET = 0x40000000
NEW_ANYTHING = NEW_MOUNTS | NEW_CGROUP | NEW_UTS | NEW_IPC | NEW_USER | NEW_PID | NEW_NET

# mount(2), mount_setattr(2)
READ_ONLY, NO_SUID, NO_DEVICES, REMOUNT, BIND = 0x1, 0x2, 0x4, 0x20, 0x1000
RECURSIVE, PRIVATE = 0x4000, 0x40000
_DETACH = 0x2  # of umount2(2)

# the same numbers on every architecture
_OPEN_TREE, _MOVE_MOUNT, _CLOSE_RANGE, _MOUNT_SETATTR = 428, 429, 436, 442
_HERE = -100  # AT_FDCWD
_EMPTY_PATH, _AT_RECURSIVE, _CLONE, _CLOEXEC = 0x1000, 0x8000, 0x1, os.O_CLOEXEC
_MOVE_FROM_FD = 0x4  # MOVE_MOUNT_F_EMPTY_PATH

_SET_DEATH_SIGNAL, _SET_DUMPABLE, _SET_SECCOMP = 1, 4, 22
_DROP_BOUNDING, _NO_NEW_PRIVILEGES = 24, 38
_CAPABILITY_VERSION_3 = 0x20080522

_LIBC = ctypes.CDLL(None, use_errno=True)
_CLONE_CALL = {"x86_64": 56, "aarch64": 220}
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}


def _call(name: str, *arguments: object) -> int:
    return _checked(name, getattr(_LIBC, name)(*map(_wide, arguments)))


def _syscall(name: str, number: int, *arguments: object) -> int:
    return _checked(name, _LIBC.syscall(ctypes.c_long(number), *map(_wide, arguments)))


def _wide(argument: object) -> object:
    """Integers as long: a variadic C function reads whole registers."""
    return ctypes.c_long(argument) if isinstance(argument, int) else argument


def _checked(name: str, answer: int) -> int:
    if answer == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), name)
    return answer


def unshare(flags: int) -> None:
    _call("unshare", flags)


def fork_to_wait(machine: str) -> int:
    """The pid of a new process that holds no file and no capability, and only waits for its end.

    A bare clone, without what os.fork does for a Python that goes on: half the pages are touched,
    and copied."""
    child = _syscall("clone", _CLONE_CALL[machine], signal.SIGCHLD, 0, 0, 0, 0)
    if child:
        return child
    _syscall("close_range", _CLOSE_RANGE, 0, 0xFFFFFFFF, 0)
    drop_capabilities()
    while True:
        _LIBC.pause()


def enter_namespace(fd: int, kind: int) -> None:
    _call("setns", fd, kind)


def mount(source: str | None, target: str, kind: str | None, flags: int, options: str = "") -> None:
    words = [None if word is None else word.encode() for word in (source, target, kind)]
    _call("mount", *words, flags, options.encode())


def unmount(target: str) -> None:
    """Takes the mount out of sight at once; it is gone as soon as nobody uses it."""
    _call("umount2", target.encode(), _DETACH)


def copy_tree(path: str, *, devices: bool = False) -> int:
    """A file descriptor of a copy of the mounts at and under `path`, read-only, that stands nowhere
    yet. It can be attached in any mount namespace."""
    flags = _CLONE | _CLOEXEC | _AT_RECURSIVE
    fd = _syscall("open_tree", _OPEN_TREE, _HERE, path.encode(), flags)
    denied = READ_ONLY | NO_SUID | (0 if devices else NO_DEVICES)
    attributes = struct.pack("QQQQ", denied, 0, PRIVATE, 0)
    where = _EMPTY_PATH | _AT_RECURSIVE
    _syscall("mount_setattr", _MOUNT_SETATTR, fd, b"", where, attributes, len(attributes))
    return fd


def attach_tree(fd: int, target: str) -> None:
    _syscall("move_mount", _MOVE_MOUNT, fd, b"", _HERE, target.encode(), _MOVE_FROM_FD)


def pivot_root(new_root: str, machine: str) -> None:
    """Makes `new_root` the root and takes the old one out of sight."""
    os.chdir(new_root)
    # the old root comes to lie over the new one, and is taken away from there
    _syscall("pivot_root", _PIVOT_ROOT[machine], b".", b".")
    unmount(".")
    os.chdir("/")


def die_with_parent(number: int) -> None:
    _call("prctl", _SET_DEATH_SIGNAL, number, 0, 0, 0)


def be_dumpable() -> None:
    """Gives /proc/self back to the process after a change of user."""
    _call("prctl", _SET_DUMPABLE, 1, 0, 0, 0)


def gain_nothing_by_exec() -> None:
    """No set-user-id program, and no file's capabilities, from now on."""
    for capability in range(64):
        try:
            _call("prctl", _DROP_BOUNDING, capability, 0, 0, 0)
        except OSError:  # past the last capability of this kernel
            break
    _call("prctl", _NO_NEW_PRIVILEGES, 1, 0, 0, 0)


def drop_capabilities() -> None:
    header = struct.pack("Ii", _CAPABILITY_VERSION_3, 0)
    _call("capset", header, struct.pack("6I", 0, 0, 0, 0, 0, 0))


def filter_system_calls(program: bytes) -> None:
    """Installs a seccomp filter: `program` is an array of struct sock_filter, 8 bytes each."""
    array = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("HxxxxxxQ", len(program) // 8, ctypes.addressof(array))
    _call("prctl", _SET_SECCOMP, 2, header, 0, 0)
