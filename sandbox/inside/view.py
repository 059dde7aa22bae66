"""What a program sees of the file system: Python, the system's libraries and programs, a few
devices, all read-only, and an empty folder to work in. No /proc, no /sys, no home."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from sandbox.inside import kernel

# None of these holds a person's files. /usr/local and /usr/src may.
SYSTEM = ("/usr/bin", "/usr/lib", "/usr/lib32", "/usr/lib64", "/usr/share/zoneinfo")
LINKS = ("/bin", "/lib", "/lib32", "/lib64")  # links into /usr where the two are merged
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
LIBRARY_CACHE = "/etc/ld.so.cache"
WORK, PACKAGES = "/run/work", "/run/packages"  # nobody has Python there, which they would hide
USER_ID = 1000
_PEOPLE = f"user:x:{USER_ID}:{USER_ID}::{WORK}:/bin/sh\n"
_BUILT_IN = "/tmp"  # any folder that is there: the new root lies over it, in a namespace of its own
_INODES = 8192

Trees = Mapping[str, int]


def copy_trees(folders: Sequence[str], packages: Sequence[str]) -> Trees:
    """By the path where it will be: the read-only copies that the new root consists of. `folders`:
    those of Python, which stay where they are."""
    linked = [link for link in LINKS if not Path(link).is_symlink()]
    seen = [path for path in (*SYSTEM, *linked, *folders) if Path(path).is_dir()]
    cache = [LIBRARY_CACHE] if Path(LIBRARY_CACHE).exists() else []
    trees = {path: kernel.copy_tree(path) for path in (*_outermost(seen), *cache)}
    trees |= {path: kernel.copy_tree(path, devices=True) for path in DEVICES}
    places = package_places(packages)
    return trees | {p: kernel.copy_tree(f) for p, f in zip(places, packages, strict=True)}


def package_places(packages: Sequence[str]) -> list[str]:
    """Where they will be: a person's virtual environment may be anywhere, even in /tmp."""
    return [f"{PACKAGES}/{place}" for place in range(len(packages))]


def enter(trees: Trees, machine: str) -> None:
    """Makes a root of `trees` and moves there, for good."""
    kernel.mount(None, "/", None, kernel.RECURSIVE | kernel.PRIVATE)
    links = {link: Path(link).readlink() for link in LINKS if Path(link).is_symlink()}
    kernel.mount("sandbox", _BUILT_IN, "tmpfs", kernel.NO_SUID, "mode=0755,size=1m")
    root = Path(_BUILT_IN)
    for link, target in links.items():
        (root / link[1:]).symlink_to(target)
    for path, tree in trees.items():
        place = root / path[1:]
        place.parent.mkdir(parents=True, exist_ok=True)
        if path in DEVICES or path == LIBRARY_CACHE:
            place.touch()
        else:
            place.mkdir(exist_ok=True)
        kernel.attach_tree(tree, str(place))
        os.close(tree)
    (root / WORK[1:]).mkdir(parents=True)
    (root / "dev" / "shm").symlink_to(WORK)
    if not (root / "tmp").exists():  # it does where Python itself is in it
        (root / "tmp").symlink_to(WORK)
    (root / "etc").mkdir(exist_ok=True)
    (root / "etc" / "passwd").write_text(_PEOPLE)
    kernel.pivot_root(_BUILT_IN, machine)
    flags = kernel.REMOUNT | kernel.BIND | kernel.READ_ONLY | kernel.NO_SUID
    kernel.mount(None, "/", None, flags)


def mount_work(disk_bytes: int) -> None:
    """Gives an empty folder."""
    options = f"mode=0700,size={disk_bytes},nr_inodes={_INODES}"
    kernel.mount("work", WORK, "tmpfs", kernel.NO_SUID | kernel.NO_DEVICES, options)


def renew_work(disk_bytes: int) -> None:
    """Takes the folder away with all that is in it, and gives a new one."""
    kernel.unmount(WORK)
    mount_work(disk_bytes)


def _outermost(paths: Sequence[str]) -> list[str]:
    """Without those that lie in another of them."""
    found: list[str] = []
    for path in sorted(set(paths), key=len):
        if not any(Path(path).is_relative_to(outer) for outer in found):
            found.append(path)
    return found
