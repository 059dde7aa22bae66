"""Becomes the process that it is told to be, bound to the life of its parent: `serve.py PARENT_PID
CPUS COMMAND...`.

It is run as a script, before anything is imported that could fail: the parent must not be able to
die unnoticed. CPUS is a comma-separated list of cores, or "-" for all."""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>; survives exec


def main() -> None:
    parent, cpus, command = int(sys.argv[1]), sys.argv[2], sys.argv[3:]
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the line above
            sys.exit(1)
        if cpus != "-":
            os.sched_setaffinity(0, {int(cpu) for cpu in cpus.split(",")})
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
