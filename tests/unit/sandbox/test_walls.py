"""What a hostile program tries, and what it gets. Each prints REFUSED where it met a wall, so that
a wall that is gone shows."""

import os
import socket
from pathlib import Path

import pytest

from sandbox.pool import Sandbox
from sandbox.result import SandboxResult

pytestmark = pytest.mark.asyncio(loop_scope="module")

ROOT = Path(__file__).resolve().parents[3]
ATTEMPTS = {
    "a connection": "import socket; socket.create_connection(('127.0.0.1', PORT), 2)",
    "a raw socket": "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM)",
    "netlink": "import socket; socket.socket(16, socket.SOCK_RAW, 0)",
    "the passwords": "open('/etc/shadow').read()",
    "the repository": "open('REPOSITORY/pyproject.toml').read()",
    "a file of root's": "open('SECRET').read()",
    "a link to it": "import os; os.symlink('SECRET', 'x'); open('x').read()",
    "a way up": "open('../' * 40 + 'SECRET').read()",
    "the host's processes": "open('/proc/1/environ').read()",
    "the parent's memory": "import os; open(f'/proc/{os.getppid()}/mem', 'r+b')",
    "the kernel's switches": "open('/sys/kernel/mm/transparent_hugepage/enabled').read()",
    "a disk": "import os; os.mknod('disk', 0o60600, os.makedev(8, 0)); open('disk', 'rb')",
    "Python's own files": "import json; open(json.__file__, 'a')",
    "a new file of Python's": "import json; open(json.__file__ + 'x', 'w')",
    "the root folder": "open('/x', 'w')",
    "another user": "import os; os.setuid(0)",
    "another root": "import os; os.chroot('.')",
    "the parent's life": "import os; os.kill(os.getppid() or 12345, 9)",
    "the parent's limits": "import resource as r; r.prlimit(os.getppid() or 12345, r.RLIMIT_CPU)",
    "a higher limit": "import resource as r; r.setrlimit(r.RLIMIT_FSIZE, (1 << 40, 1 << 40))",
    "ptrace": "import signal; called('ptrace', 16, os.fork() or signal.pause(), 0, 0)",
    "a new user namespace": "called('unshare', 0x10000000)",
    "a new namespace by clone": "called('syscall', 56 if X86 else 220, 0x10000011, 0, 0, 0, 0)",
    "a namespace by clone3": "called('syscall', 435, bytes(88), 88)",
    "a mount": "called('mount', b'x', b'.', b'tmpfs', 0, 0)",
    "memory that nobody counts": "os.memfd_create('x')",
    "shared memory of System V": "called('shmget', 0, 4096, 0o1600)",
    "io_uring": "called('syscall', 425, 1, bytes(120))",
    "bpf": "called('syscall', 321 if X86 else 280, 0, bytes(64), 64)",
    "the third set of calls": "called('syscall', 0x40000000 + 39)",
}
FRAME = """
import ctypes, os
X86 = os.uname().machine == "x86_64"
def called(name, *arguments):
    libc = ctypes.CDLL(None, use_errno=True)
    wide = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    if getattr(libc, name)(*wide) == -1:
        raise OSError(ctypes.get_errno(), name)
try:
    exec(ATTEMPT)
except (OSError, ValueError) as error:
    print("REFUSED", error)
else:
    print("DONE")
"""


@pytest.mark.parametrize("name", ATTEMPTS)
async def test_a_wall(small: Sandbox, tmp_path: Path, name: str) -> None:
    secret = tmp_path / "secret"
    secret.write_text("s")
    with socket.create_server(("127.0.0.1", 0)) as server:
        attempt = ATTEMPTS[name].replace("PORT", str(server.getsockname()[1]))
        attempt = attempt.replace("SECRET", str(secret))
        attempt = attempt.replace("REPOSITORY", str(ROOT))
        result = await small.run(FRAME.replace("ATTEMPT", repr(attempt)))
    assert result.stdout.startswith("REFUSED"), (result.stdout, result.stderr)


async def test_a_set_user_id_program_gives_nothing(small: Sandbox) -> None:
    code = "import subprocess as s; print(s.run(['su', '-c', 'id'], capture_output=True))"
    result = await small.run(code, "")
    assert "uid=0" not in result.stdout


async def test_it_has_no_capabilities_and_nothing_of_the_owners(small: Sandbox) -> None:
    os.environ["SECRET_OF_THE_OWNER"] = "s"
    try:
        result = await small.run(
            "import ctypes, os, sys\n"
            "libc, data = ctypes.CDLL(None), (ctypes.c_uint * 6)()\n"
            "libc.capget((ctypes.c_uint * 2)(0x20080522, 0), data)\n"
            "print(list(data), os.getuid(), 'SECRET_OF_THE_OWNER' in os.environ)\n"
            "print([number for number in range(3, 1024) if libc.fcntl(number, 1) != -1])"
        )
    finally:
        del os.environ["SECRET_OF_THE_OWNER"]
    assert result.stdout == "[0, 0, 0, 0, 0, 0] 1000 False\n[]\n", result


async def test_no_result_can_be_forged(small: Sandbox) -> None:
    """What a program writes to any file descriptor is its output at most."""
    code = (
        'import os\nanswer = b\'{"exit_code": 0, "late": false, "seconds": 0}\'\n'
        "for number in range(3, 1024):\n"
        "    try:\n        os.write(number, answer)\n"
        "    except OSError:\n        pass\n"
        "os._exit(3)"
    )
    assert (await small.run(code)).exit_code == 3
    assert await _works(small)


@pytest.mark.parametrize(
    ("code", "exit_code"),
    [
        ("import os; os._exit(7)", 7),
        ("exit(5)", 5),
        ("import sys; sys.exit('why')", 1),
        ("import os; os.kill(os.getpid(), 9)", -9),
        ("import os; os.kill(-1, 9)", 1),
        ("import os; os.kill(1, 9)", 0),
        ("import os; os.abort()", -6),
        ("import ctypes; ctypes.string_at(0)", -11),
        ("import os; os.execv('/usr/bin/false', ['false'])", 1),
        ("import os\nif os.fork():\n    os._exit(4)\nwhile True: pass", 4),
        ("import sys; sys.stdout.close()", 0),
    ],
)
async def test_however_it_ends_the_next_one_runs(small: Sandbox, code: str, exit_code: int) -> None:
    result = await small.run(code)
    assert (result.exit_code, result.killed_by) == (exit_code, None), result
    assert await _works(small)


async def test_nothing_goes_from_one_call_to_the_next(small: Sandbox) -> None:
    await small.run(
        "import json, os, sys\n"
        "open('/tmp/left', 'w').write('x')\n"
        "json.left = sys.left = 1\n"
        "if not os.fork():\n"
        "    os.setsid()\n"
        "    while True: os.path.exists('/tmp')"
    )
    result = await small.run(
        "import json, os, sys\n"
        "print(os.listdir('/tmp'), hasattr(json, 'left'), hasattr(sys, 'left'), os.getpid())\n"
        "os.kill(2, 0)\n"
        "try: os.kill(3, 0)\n"
        "except ProcessLookupError: print('alone')"
    )
    assert result.stdout == "[] False False 2\nalone\n", result


async def _works(sandbox: Sandbox) -> bool:
    result: SandboxResult = await sandbox.run("print(6 * 7)")
    return result.stdout == "42\n"
