"""Runs a command and outlives it, to leave nothing of it behind: `keeper.py PARENT_PID COMMAND...`.

Whatever the command starts, in sessions of its own too, becomes a child of this process when its
own parent ends. When the command has ended, or this process is told to end, or its parent has died,
all of them are killed. It ends with the command's exit code (128 + n for signal n).

It is run as a script by a Python without site packages: it is started once a sample."""

import ctypes
import os
import signal
import sys
from pathlib import Path

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # <linux/prctl.h>
NOT_FOUND, NOT_EXECUTABLE = 127, 126  # as a shell says it
WAITED_FOR = {signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP}


def main() -> int:
    parent, command = int(sys.argv[1]), sys.argv[2:]
    signal.pthread_sigmask(signal.SIG_BLOCK, WAITED_FOR)
    if sys.platform == "linux":
        prctl = ctypes.CDLL(None, use_errno=True).prctl
        prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent:  # it died before the line above
            return 1
    try:
        child = os.posix_spawnp(command[0], command, os.environ, setsigmask=[])
    except OSError as error:
        print(f"{command[0]}: {error.strerror}", file=sys.stderr)
        return NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_EXECUTABLE
    code = _wait(child)
    _end_all()
    return code


def _wait(child: int) -> int:
    """Until the child has ended, or this process is to end."""
    while True:
        if signal.sigwait(WAITED_FOR) != signal.SIGCHLD:
            return 128 + signal.SIGTERM
        while (ended := _reap()) is not None:
            if ended[0] == child:
                code = os.waitstatus_to_exitcode(ended[1])
                return code if code >= 0 else 128 - code


def _reap() -> tuple[int, int] | None:
    """(process, status) of one that has ended."""
    try:
        process, status = os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return None
    return (process, status) if process else None


def _end_all() -> None:
    """What ends leaves its own children to this process, so there may be more of them."""
    while True:
        for process in _children():
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                continue
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def _children() -> list[int]:
    own = os.getpid()
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            # the name, in brackets, may hold anything
            state, parent, *_ = status.read_text(errors="replace").rpartition(")")[2].split()
        except (OSError, ValueError):
            continue
        if int(parent) == own and state != "Z":
            found.append(int(status.parent.name))
    return found


if __name__ == "__main__":
    sys.exit(main())
