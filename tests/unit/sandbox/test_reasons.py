"""Where there can be no sandbox, the error says what to do, and nothing runs."""

import asyncio
import errno
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from sandbox import reasons, worker
from sandbox.inside import view
from sandbox.limits import Limits
from sandbox.pool import Sandbox
from sandbox.reasons import why_impossible, why_refused
from sandbox.result import SandboxUnavailable


@pytest.mark.parametrize(
    ("switch", "value", "says"),
    [
        ("kernel/apparmor_restrict_unprivileged_userns", "1", "unprivileged_userns=0"),
        ("kernel/unprivileged_userns_clone", "0", "unprivileged_userns_clone=1"),
        ("user/max_user_namespaces", "0", "max_user_namespaces=10000"),
        ("kernel/apparmor_restrict_unprivileged_userns", "0", "docker run --security-opt"),
    ],
)
def test_the_switch_is_named(tmp_path: Path, switch: str, value: str, says: str) -> None:
    (tmp_path / switch).parent.mkdir()
    (tmp_path / switch).write_text(f"{value}\n")
    assert says in why_refused("unshare: no", errno.EPERM, tmp_path)


def test_what_the_kernel_did_not_refuse_is_no_matter_of_switches(tmp_path: Path) -> None:
    assert "docker" not in why_refused("ModuleNotFoundError: numpie", None, tmp_path)


@pytest.mark.parametrize(
    ("machine", "release", "says"),
    [
        ("riscv64", "6.1.0", "not riscv64's"),
        ("x86_64", "5.10.0-23-amd64", "5.14 or newer"),
        ("x86_64", "4.18.0", "5.14 or newer"),
        ("aarch64", "6.1.0-13-arm64", None),
        ("x86_64", "5.14", None),
    ],
)
def test_machines(
    monkeypatch: pytest.MonkeyPatch, machine: str, release: str, says: str | None
) -> None:
    system = SimpleNamespace(machine=machine, release=release)
    monkeypatch.setattr(os, "uname", lambda: system)
    missing = why_impossible()
    assert says in (missing or "") if says else missing is None


async def test_no_linux_no_sandbox(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reasons.sys, "platform", "darwin")
    with pytest.raises(SandboxUnavailable, match="darwin"):
        await Sandbox().__aenter__()


async def test_a_wall_that_cannot_be_built_is_an_error_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The mount of the folder to work in is refused."""
    settings = worker._settings

    def without_room(limits: Limits, preload: list[str]) -> dict[str, object]:
        return {**settings(limits, preload), "limits": {"disk_bytes": "none"}}

    monkeypatch.setattr(worker, "_settings", without_room)
    started = []
    popen = worker.subprocess.Popen
    monkeypatch.setattr(
        worker.subprocess, "Popen", lambda *a, **k: started.append(popen(*a, **k)) or started[-1]
    )
    with pytest.raises(SandboxUnavailable, match=r"Invalid argument: 'mount'|mount"):
        await Sandbox().__aenter__()
    assert [process.poll() for process in started] != [None]


async def test_a_module_that_cannot_be_preloaded_is_named() -> None:
    with pytest.raises(SandboxUnavailable, match="no_such_module"):
        await Sandbox(preload=["no_such_module"]).__aenter__()


async def test_a_warden_that_says_nothing_is_overdue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "START_SECONDS", 0.05)
    monkeypatch.setattr(worker, "_START", "import signal; {!r}; signal.pause()")
    async with asyncio.timeout(30.0):
        with pytest.raises(SandboxUnavailable, match="within a second"):
            await Sandbox().__aenter__()


async def test_modules_of_preload_are_there_before_any_program() -> None:
    async with Sandbox(num_workers=1, preload=["decimal"]) as sandbox:
        asked = "import sys; print('decimal' in sys.modules, 'sandbox' in sys.modules)"
        assert (await sandbox.run(asked)).stdout == "True False\n"


def test_python_may_be_anywhere_and_is_bound_once() -> None:
    paths = ["/opt/x/lib", "/opt/x/lib/python3", "/usr/lib", "/opt/x/library"]
    assert sorted(view._outermost(paths)) == ["/opt/x/lib", "/opt/x/library", "/usr/lib"]
