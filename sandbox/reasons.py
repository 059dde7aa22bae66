"""Why there can be no sandbox here, in words that say what to do."""

from __future__ import annotations

import asyncio
import errno
import functools
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sandbox.inside.system_calls import can_filter
from sandbox.limits import Limits
from sandbox.resident import can_look
from sandbox.result import SandboxUnavailable

LINUX = (5, 14)
_SWITCHES = {
    "kernel/unprivileged_userns_clone": ("0", "kernel.unprivileged_userns_clone=1"),
    "kernel/apparmor_restrict_unprivileged_userns": (
        *("1", "kernel.apparmor_restrict_unprivileged_userns=0"),
    ),
    "user/max_user_namespaces": ("0", "user.max_user_namespaces=10000"),
}


def why_impossible() -> str | None:
    """What this machine lacks for any sandbox, as far as one sees without starting one."""
    if sys.platform != "linux":
        return f"the sandbox is made of Linux's namespaces, and this is {sys.platform}"
    system = os.uname()
    if not can_filter(system.machine):
        return f"the sandbox knows the system calls of x86_64 and aarch64, not {system.machine}'s"
    if _version(system.release) < LINUX:
        return f"the sandbox needs Linux {LINUX[0]}.{LINUX[1]} or newer; this is {system.release}"
    if not can_look():
        return "/proc/PID/task/TID/children is not there: the kernel lacks CONFIG_PROC_CHILDREN"
    return None


def why_refused(said: str, number: int | None, proc: Path = Path("/proc/sys")) -> str:
    """The warden's or the zygote's error, and what may help."""
    message = f"no sandbox can be built, and nothing runs without one: {said}."
    if number not in (errno.EPERM, errno.EACCES, errno.ENOSPC, errno.EINVAL, errno.ENOSYS):
        return message
    for name, (forbidding, instead) in _SWITCHES.items():
        switch = proc / name
        if switch.exists() and switch.read_text().strip() == forbidding:
            return f"{message} This system forbids user namespaces: sudo sysctl -w {instead}"
    return (
        f"{message} The kernel must allow user namespaces and mounts in them. In a container they"
        " are often forbidden: docker run --security-opt seccomp=unconfined --security-opt"
        " apparmor=unconfined"
    )


@functools.cache
def why_unavailable() -> str | None:
    """None where a sandbox starts: one is started, once in a process, which takes about 0.1 s."""
    from sandbox.worker import Worker

    async def start() -> None:
        worker = await Worker.start(Limits())
        await worker.kill()

    if missing := why_impossible():
        return missing
    with ThreadPoolExecutor(1) as elsewhere:  # here an event loop may run
        try:
            elsewhere.submit(asyncio.run, start()).result()
        except SandboxUnavailable as error:
            return str(error)
    return None


def _version(release: str) -> tuple[int, ...]:
    numbers = release.split("-")[0].split("+")[0].split(".")[:2]
    return tuple(int(number) for number in numbers if number.isdigit())
