"""Which system calls a program may not make, as a seccomp filter.

The namespaces are the walls; this takes away what could be used to dig: parts of the kernel that no
Python program needs and in which holes were found again and again, memory that no limit counts,
other processes' insides, new namespaces, sockets other than those between the program's own
processes. A list of what is forbidden, not of what is allowed: a new libc or numpy asks for new
calls. The choice follows what Docker and systemd (@system-service) forbid by default.
"""

from __future__ import annotations

import errno
import socket
import struct
import sys

from sandbox.inside.kernel import NEW_ANYTHING

# name: (x86_64, aarch64); None where an architecture has no such call
_DENIED: dict[str, tuple[int | None, int | None]] = {
    # other processes' insides, and their limits and places
    **{"ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271)},
    **{"kcmp": (312, 272), "pidfd_getfd": (438, 438), "process_madvise": (440, 440)},
    **{"process_mrelease": (448, 448), "move_pages": (279, 239), "migrate_pages": (256, 238)},
    # mounts and roots
    **{"mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51)},
    **{"open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430)},
    **{"fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433)},
    **{"mount_setattr": (442, 442), "open_tree_attr": (467, 467)},
    **{"name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265)},
    **{"quotactl": (179, 60), "quotactl_fd": (443, 443), "fanotify_init": (300, 262)},
    # namespaces (clone is judged by its flags, below)
    **{"unshare": (272, 97), "setns": (308, 268)},
    # memory that is not the program's own, and is counted nowhere
    **{"memfd_create": (319, 279), "memfd_secret": (447, 447), "shmget": (29, 194)},
    **{"shmat": (30, 196), "shmctl": (31, 195), "shmdt": (67, 197), "mbind": (237, 235)},
    **{"set_mempolicy": (238, 237), "set_mempolicy_home_node": (450, 450)},
    # System V and POSIX messages and semaphores
    **{"msgget": (68, 186), "msgsnd": (69, 189), "msgrcv": (70, 188), "msgctl": (71, 187)},
    **{"semget": (64, 190), "semop": (65, 193), "semctl": (66, 191), "semtimedop": (220, 192)},
    **{"mq_open": (240, 180), "mq_unlink": (241, 181)},
    # where kernels were broken into
    **{"bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282)},
    **{"io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427)},
    **{"add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219)},
    **{"vmsplice": (278, 75), "modify_ldt": (154, None), "personality": (135, 92)},
    # the machine itself
    **{"init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106)},
    **{"kexec_load": (246, 104), "kexec_file_load": (320, 294), "reboot": (169, 142)},
    **{"swapon": (167, 224), "swapoff": (168, 225), "acct": (163, 89), "syslog": (103, 116)},
    **{"settimeofday": (164, 170), "clock_settime": (227, 112), "clock_adjtime": (305, 266)},
    **{"adjtimex": (159, 171), "sethostname": (170, 161), "setdomainname": (171, 162)},
    **{"iopl": (172, None), "ioperm": (173, None), "vhangup": (153, 58)},
}
_CLONE, _SOCKET, _CLONE3 = (56, 220), (41, 198), 435
_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32 = 0x40000000  # numbers from here on are x86_64's third set of calls

# BPF of seccomp(2): loads, jumps, returns; places in struct seccomp_data
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16
_ALLOW, _KILL, _ERROR = 0x7FFF0000, 0x80000000, 0x00050000


def can_filter(machine: str) -> bool:
    """Does the filter know this architecture (of os.uname)?"""
    return machine in _ARCHITECTURES and sys.byteorder == "little"


def filter_program(machine: str) -> bytes:
    """The filter as an array of struct sock_filter. A forbidden call fails with EPERM; a call of
    another architecture ends the process."""
    place = list(_ARCHITECTURES).index(machine)
    refuse = _step(_RETURN, _ERROR | errno.EPERM)
    unknown = _step(_RETURN, _ERROR | errno.ENOSYS)
    program = [
        *(_step(_LOAD, _ARCHITECTURE), _step(_EQUAL, _ARCHITECTURES[machine], yes=1)),
        *(_step(_RETURN, _KILL), _step(_LOAD, _NUMBER)),
        *(_step(_AT_LEAST, _X32, no=1), unknown),
        # its flags lie in memory, where no filter sees them; libc then takes clone
        *(_step(_EQUAL, _CLONE3, no=1), unknown),
    ]
    for numbers in _DENIED.values():
        if (number := numbers[place]) is not None:
            program += [_step(_EQUAL, number, no=1), refuse]
    allow = _step(_RETURN, _ALLOW)
    program += [
        *(_step(_EQUAL, _CLONE[place], no=4), _step(_LOAD, _FIRST_ARGUMENT)),
        *(_step(_ANY_BIT, NEW_ANYTHING, no=1), refuse, allow),
        *(_step(_EQUAL, _SOCKET[place], no=4), _step(_LOAD, _FIRST_ARGUMENT)),
        *(_step(_EQUAL, socket.AF_UNIX, yes=1), refuse, allow),
        allow,
    ]
    return b"".join(program)


def _step(code: int, value: int, *, yes: int = 0, no: int = 0) -> bytes:
    """One instruction; `yes` and `no`: how many it jumps over."""
    return struct.pack("HBBI", code, yes, no, value)
