"""The entry of a sandbox's processes: leaves everything that the owner could see or do, starts the
zygote within the walls, and ends with its owner, however that ends.

Root becomes nobody first; from there on root and an ordinary user go the same way. All of it is
Linux 5.14's: before that, limits on processes counted all of the user's, in and out of the
sandbox."""

from __future__ import annotations

import json
import os
import select
import socket
import sys
from pathlib import Path

from sandbox.inside import kernel, view, zygote

NOBODY = 65534
_NAMESPACES = (
    *(kernel.NEW_USER, kernel.NEW_MOUNTS, kernel.NEW_PID, kernel.NEW_NET),
    *(kernel.NEW_IPC, kernel.NEW_UTS, kernel.NEW_CGROUP),
)


def main() -> None:
    """`argv`: the file descriptor of the owner's socket. The first message on it says how; the
    answers are {"zygote": its pid}, then {"ready": true}; or {"error": text, "errno": N}."""
    control = socket.socket(fileno=int(sys.argv[1]))
    settings = json.loads(control.recv(1 << 16))
    owner = os.pidfd_open(os.getppid())
    if os.getppid() != settings["owner"]:  # it died before we looked
        return
    try:
        trees = _leave(settings["folders"], settings["packages"])
        child = os.fork()
        if child == 0:
            os.close(owner)
            zygote.live(control, trees, settings)
    except Exception as error:
        tell_error(control, error)
        return
    control.send(json.dumps({"zygote": child}).encode())
    control.close()  # from now on it closes when the zygote dies
    for tree in trees.values():
        os.close(tree)
    _until_either_ends(owner, os.pidfd_open(child))
    # the zygote dies of it, and with the first process of its pid namespace all others


def tell_error(control: socket.socket, error: Exception) -> None:
    number = error.errno if isinstance(error, OSError) else None
    said = f"{type(error).__name__}: {error}"
    control.send(json.dumps({"error": said[:10_000], "errno": number}).encode())


def _leave(folders: list[str], packages: list[str]) -> view.Trees:
    """Into new namespaces, as an ordinary user. Returns what the new root is to consist of."""
    Path("/proc/self/oom_score_adj").write_text("1000")  # the first to go where memory is short
    trees: view.Trees | None = None
    if os.geteuid() == 0:
        trees = view.copy_trees(folders, packages)  # nobody may not read /root, where Python may be
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        kernel.be_dumpable()
    user, group = os.geteuid(), os.getegid()
    kernel.unshare(sum(_NAMESPACES))
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{view.USER_ID} {user} 1")
    Path("/proc/self/gid_map").write_text(f"{view.USER_ID} {group} 1")
    return view.copy_trees(folders, packages) if trees is None else trees


def _until_either_ends(*processes: int) -> None:
    """`processes`: pidfds."""
    waiting = select.poll()
    for process in processes:
        waiting.register(process, select.POLLIN)
    while not waiting.poll():
        pass
