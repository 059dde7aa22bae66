"""Each piece in a fresh interpreter: they change what imports mean."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from compat import ROOT, SITE, engine_environment
from compat.versions import for_version, installed_version


def python(code: str, *, engine: bool = False, path: str = "") -> str:
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    if engine:
        environment = engine_environment(environment)
    if path:
        environment["PYTHONPATH"] += f":{path}"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_installing_is_lazy_and_idempotent() -> None:
    code = """
import sys, compat
compat.install_engine(); compat.install_engine()
names = [type(f).__module__ for f in sys.meta_path]
print(names.count("compat.environment.hooks"), "torch" in sys.modules)
"""
    assert python(code) == "5 False"


def test_the_kernel_stub_names_what_is_called_and_refuses_what_it_does_not_know() -> None:
    code = """
import sgl_kernel
try: sgl_kernel.verify_tree_greedy_cpu()
except NotImplementedError as e: print(e)
try: from sgl_kernel import silu_and_mul
except ImportError as e: print("ImportError")
"""
    said = python(code, engine=True).splitlines()
    assert "sgl_kernel.verify_tree_greedy_cpu was called" in said[0] and said[1] == "ImportError"


def test_a_real_kernel_library_wins(tmp_path: Path) -> None:
    (tmp_path / "sgl_kernel.py").write_text("real = True\n")
    assert (
        python("import sgl_kernel; print(sgl_kernel.real)", engine=True, path=str(tmp_path))
        == "True"
    )


def test_the_stub_is_not_importable_outside_engines() -> None:
    assert python("import importlib.util as u; print(u.find_spec('sgl_kernel'))") == "None"


def test_cuda_calls_are_no_ops_without_cuda() -> None:
    code = """
import torch
from compat.cudart import fill_in_cudart
fill_in_cudart()
if not torch.cuda.is_available():
    assert torch.cuda.cudart().cudaHostRegister(0, 1, 0) == 0
    torch.cuda.synchronize()
print("ok")
"""
    assert python(code) == "ok"


def test_a_piece_is_not_applied_to_another_version() -> None:
    ran: list[str] = []
    with pytest.warns(UserWarning, match=r"written for 0\.0\.1, found"):
        for_version("numpy", "0.0.1", lambda: ran.append("other"))()
    assert ran == []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for_version("numpy", installed_version("numpy") or "", lambda: ran.append("right"))()
    assert ran == ["right"]


def test_engine_environment_keeps_what_was_there() -> None:
    out = engine_environment({"PYTHONPATH": "/a:/b", "X": "y"})
    assert out["PYTHONPATH"].split(":") == [str(SITE), str(ROOT), "/a", "/b"] and out["X"] == "y"


def test_the_noise_of_seeded_requests_is_murmur3s() -> None:
    """Against the algorithm as published, on 16 bytes at a time."""
    import struct

    import torch

    from compat.seeds import murmur_hash32

    def published(data: bytes) -> int:
        h, mask = 0, 0xFFFFFFFF
        for (k,) in struct.iter_unpack("<I", data):
            k = (k * 0xCC9E2D51) & mask
            k = ((k << 15 | k >> 17) & mask) * 0x1B873593 & mask
            h ^= k
            h = ((h << 13 | h >> 19) & mask) * 5 + 0xE6546B64 & mask
        h ^= len(data)
        h = (h ^ h >> 16) * 0x85EBCA6B & mask
        h = (h ^ h >> 13) * 0xC2B2AE35 & mask
        return h ^ h >> 16

    assert published(b"testtest") != published(b"testtesu") and published(b"aaaa") == 2129582471
    seeds, positions = torch.tensor([5, -7, 2**40 + 3]), torch.tensor([0, 9, 100])
    got = murmur_hash32(seeds.to(torch.uint64), positions, torch.arange(4))
    want = [
        [published(struct.pack("<qII", s, p, c)) for c in range(4)]
        for s, p in zip(seeds.tolist(), positions.tolist(), strict=True)
    ]
    assert got.tolist() == want


FORKS = """
import multiprocessing, threading
from compat.forks import fork_instead_of_spawn
fork_instead_of_spawn(); fork_instead_of_spawn()
def method():
    multiprocessing.set_start_method("spawn", force=True)
    return multiprocessing.get_start_method()
end = threading.Event()
said = [method()]
threading.Thread(target=end.wait).start()
said.append(method())
end.set()
multiprocessing.set_start_method("forkserver", force=True)
print(*said, multiprocessing.get_start_method())
"""


def test_a_process_is_copied_where_it_has_one_thread_and_nothing_else_is_changed() -> None:
    assert python(FORKS) == "fork spawn forkserver"


PAUSES = """
import sys, types
module = types.ModuleType("sglang.srt.managers.scheduler")
class Scheduler:
    def _record_scheduler_state_for_paused_engine(self): print("recorded")
    def maybe_sleep_on_idle(self): print("slept")
module.Scheduler = Scheduler
sys.modules[module.__name__] = module
from compat.pauses import sleep_while_paused
sleep_while_paused()
Scheduler()._record_scheduler_state_for_paused_engine()
"""


def test_a_paused_scheduler_records_and_sleeps() -> None:
    assert python(PAUSES).splitlines() == ["recorded", "slept"]


def test_a_hook_runs_before_or_after_its_module(tmp_path: Path) -> None:
    (tmp_path / "hooked.py").write_text("print('module')\n")
    code = """
import sys
from compat.environment.hooks import ImportHook
for after in (False, True):
    sys.meta_path.insert(0, ImportHook("hooked", lambda: print("hook"), after=after))
    import hooked
    del sys.modules["hooked"], sys.meta_path[0]
"""
    assert python(code, path=str(tmp_path)).split() == ["hook", "module", "module", "hook"]
