"""Each piece in a fresh interpreter: they change what imports mean."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from compat import ROOT, SITE, engine_environment
from compat.hooks import ImportHook, installed_version


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


def test_torchvision_imports_and_its_operators_are_declared() -> None:
    code = (
        "import compat; compat.install(); import torchvision, torch;"
        " print(torch.ops.torchvision.nms)"
    )
    assert "torchvision.nms" in python(code)


def test_installing_is_lazy_and_idempotent() -> None:
    code = """
import sys, compat
compat.install(); compat.install_engine(); compat.install_engine()
names = [type(f).__name__ for f in sys.meta_path]
print(names.count("ImportHook"), names.count("InertTritonFinder"), "torch" in sys.modules)
"""
    assert python(code) == "5 1 False"


def test_triton_kernels_can_be_declared_and_not_run() -> None:
    code = """
import triton, triton.language as tl
from triton.runtime.jit import JITFunction
@triton.jit
def kernel(x, N: tl.constexpr): return x
@triton.autotune(configs=[triton.Config({"N": 1}, num_warps=4)], key=["N"])
@triton.jit
def tuned(x): return x
class Mine(triton.runtime.KernelInterface): ...
assert triton.language is tl and isinstance(JITFunction, type) and not triton.something
print(triton.cdiv(7, 2), triton.next_power_of_2(5), kernel(3, 1), tuned(4))
"""
    assert python(code, engine=True) == "4 8 3 4"


def test_a_real_triton_wins(tmp_path: Path) -> None:
    (tmp_path / "triton.py").write_text("real = True\n")
    assert python("import triton; print(triton.real)", engine=True, path=str(tmp_path)) == "True"


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
    ran: list[int] = []
    hook = ImportHook("numpy", "numpy", "0.0.1", lambda: ran.append(1))
    sys.meta_path.insert(0, hook)
    with pytest.warns(UserWarning, match=r"written for 0\.0\.1, found"):
        hook.find_spec("numpy")
    assert not ran and hook not in sys.meta_path
    right = ImportHook("numpy", "numpy", installed_version("numpy") or "", lambda: ran.append(1))
    sys.meta_path.insert(0, right)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        right.find_spec("numpy.linalg")  # another module: not yet
        assert not ran
        right.find_spec("numpy")
    assert ran == [1]


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
