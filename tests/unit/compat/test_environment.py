"""What `python -m compat.environment` puts into an environment, in processes that know nothing of
this repository."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from pipeline.models.resolve import resolve_checkpoint
from tests.conftest import ROOT


def elsewhere(code: str, folder: Path, python: str | Path = sys.executable) -> str:
    """What `code` prints in a folder of its own, without this repository on the path."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [python, "-c", code],
        cwd=folder,
        env=environment | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_checkpoint_loads_where_nothing_of_ours_is_imported(tmp_path: Path) -> None:
    model = resolve_checkpoint(
        f"tiny:{ROOT / 'configs/models/tiny-qwen3.yaml'}", tmp_path / "models"
    )
    code = f"""
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained({str(model)!r})
AutoTokenizer.from_pretrained({str(model)!r})
print(type(model).__name__, "compat" in sys.modules, "pipeline" in sys.modules)
"""
    assert elsewhere(code, tmp_path) == "Qwen3ForCausalLM False False"


def test_an_image_models_processor_is_there(tmp_path: Path) -> None:
    code = (
        "from transformers import Qwen3VLProcessor, Qwen3VLForConditionalGeneration as Q; print(Q)"
    )
    assert "Qwen3VLForConditionalGeneration" in elsewhere(code, tmp_path)


@pytest.mark.parametrize("module", ["sglang.srt.utils", "torchvision", "megatron.core", "wandb"])
def test_what_a_user_imports_is_importable(module: str, tmp_path: Path) -> None:
    assert elsewhere(f"import {module}; print({module}.__name__)", tmp_path) == module


def test_looking_for_a_package_imports_nothing(tmp_path: Path) -> None:
    code = """
import sys, importlib.util
print(importlib.util.find_spec("torchvision") is not None, "torch" in sys.modules,
      sorted(m for m in sys.modules if m.startswith("slipstream")))
"""
    said = elsewhere(code, tmp_path)
    assert said == "True False ['slipstream_environment', 'slipstream_environment.hooks']"


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """The Python of an environment with nothing but the pieces."""
    venv.create(tmp_path / "bare", symlinks=True)
    python = tmp_path / "bare" / "bin" / "python"
    for _ in range(2):  # an update
        subprocess.run([python, "-m", "compat.environment"], cwd=ROOT, check=True)
    return python


def test_an_environment_gets_the_pieces(bare: Path, tmp_path: Path) -> None:
    code = """
import sys
names = [type(f).__module__ for f in sys.meta_path]
print(names.count("slipstream_environment.hooks"), "importlib.abc" in sys.modules)
"""
    assert elsewhere(code, tmp_path, bare) == "2 False"


SGLANG = """
import triton, triton.language as tl
from triton.runtime.jit import JITFunction
@triton.jit
def kernel(x, N: tl.constexpr): return x
@triton.autotune(configs=[triton.Config({"N": 1}, num_warps=4)], key=["N"])
@triton.jit
def tuned(x): return x
class Mine(triton.runtime.KernelInterface): ...
assert triton.language is tl and isinstance(JITFunction, type) and not triton.something
said = (triton.cdiv(7, 2), triton.next_power_of_2(5), kernel(3, 1), tuned(4))
"""


def test_sglang_can_declare_triton_kernels(bare: Path, tmp_path: Path) -> None:
    (tmp_path / "sglang.py").write_text(SGLANG)
    assert elsewhere("import sglang; print(sglang.said)", tmp_path, bare) == "(4, 8, 3, 4)"


def test_nobody_else_meets_an_inert_triton(bare: Path, tmp_path: Path) -> None:
    code = "import importlib.util as u; print(u.find_spec('triton'))"
    assert elsewhere(code, tmp_path, bare) == "None"


def test_a_real_triton_wins(bare: Path, tmp_path: Path) -> None:
    (tmp_path / "sglang.py").write_text("import triton")
    (tmp_path / "triton.py").write_text("real = True")
    assert elsewhere("import sglang; print(sglang.triton.real)", tmp_path, bare) == "True"
