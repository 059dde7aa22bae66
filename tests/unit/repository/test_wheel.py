"""The wheel: built, installed into a new environment and used from a folder that is not the
repository's."""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline.core.version import __version__

ROOT = Path(__file__).resolve().parents[3]
FOLDERS = (
    "slipstream",
    "pipeline",
    "stages",
    "buffers",
    "configs",
    "compat",
    "sandbox",
    "examples",
)
FILES = ("setup.py", "pyproject.toml", "train_async.py", "README.md", "LICENSE")
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")


@dataclass(frozen=True)
class Installation:
    """A new environment with the wheel in it."""

    wheel: Path
    folder: Path
    elsewhere: Path  # a folder that holds nothing of ours

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """`words`, the first of them a program of the environment."""
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        command = [str(self.folder / "bin" / words[0]), *words[1:]]
        return subprocess.run(
            command,
            cwd=self.elsewhere,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )


def checked(*command: str | Path) -> None:
    answer = subprocess.run([*command], capture_output=True, text=True, timeout=300)
    assert answer.returncode == 0, answer.stdout + answer.stderr


def product_files() -> set[str]:
    return {
        path.relative_to(ROOT).as_posix()
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    base = tmp_path_factory.mktemp("wheel")
    source, folder, elsewhere = base / "source", base / "environment", base / "elsewhere"
    elsewhere.mkdir()
    for name in FOLDERS:
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, ignore=ignore)
    for name in FILES:
        shutil.copy(ROOT / name, source)
    flags = ("--no-deps", "--no-build-isolation", "--wheel-dir", base)
    checked(*PIP, "wheel", *flags, source)
    (wheel,) = base.glob("*.whl")
    checked(sys.executable, "-m", "venv", "--without-pip", folder)
    python = folder / "bin" / "python"
    # what Slipstream depends on is taken from the environment that runs the tests
    scheme = sysconfig.get_path("purelib", vars={"base": str(folder)})
    Path(scheme, "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    checked(*PIP, "--python", python, "install", "--no-deps", "--no-index", wheel)
    return Installation(wheel=wheel, folder=folder, elsewhere=elsewhere)


def test_every_file_of_the_product_is_in_the_wheel(installed: Installation) -> None:
    packed = set(zipfile.ZipFile(installed.wheel).namelist())
    expected = {
        f"slipstream/{name}" if name.startswith("examples/") else name for name in product_files()
    }
    assert expected | {"train_async.py"} <= packed
    tops = {name.split("/")[0] for name in packed if ".dist-info" not in name}
    assert tops == {*FOLDERS, "train_async.py"} - {"examples"}  # no tests, no benchmarks


@pytest.mark.parametrize(
    "words",
    [
        ("slipstream", "--version"),
        ("slipstream", "train", "--version"),
        ("python", "-m", "pipeline", "--version"),
    ],
    ids=" ".join,
)
def test_the_version_is_the_one_of_the_module(
    installed: Installation, words: tuple[str, ...]
) -> None:
    answer = installed.run(*words)
    assert (answer.returncode, answer.stdout) == (0, f"slipstream {__version__}\n"), answer.stderr
    assert installed.wheel.name.startswith(f"slipstream-{__version__}-")


def test_the_command_trains_reports_and_looks_into_the_buffer(installed: Installation) -> None:
    flags = ("--mock", "--num-rollout", "2", "--name", "abroad", "--keep-trajectories")
    trained = installed.run("slipstream", "train", *flags)
    assert trained.returncode == 0, trained.stdout + trained.stderr
    run = installed.elsewhere / "runs" / "abroad"
    (run / "report.html").unlink()
    reported = installed.run("slipstream", "report", "runs/abroad")
    assert reported.returncode == 0, reported.stderr
    assert (run / "report.html").is_file()
    account = installed.run("slipstream", "buffer", "runs/abroad", "ledger", "--json")
    assert account.returncode == 0, account.stderr
    assert '"lost": 0' in account.stdout


def test_a_preset_its_model_data_and_example_are_found(installed: Installation) -> None:
    trained = installed.run(
        *("slipstream", "train", "--config", "sft", "--mock", "--num-rollout", "1"),
        *("--custom-generate-function-path", "examples/sft.py"),
        *("--custom-rm-path", "examples/sft.py:reward"),
    )
    assert trained.returncode == 0, trained.stdout + trained.stderr
    resolved = (installed.elsewhere / "runs" / "sft" / "config.yaml").read_text()
    for name in ("slipstream/examples/sft.py", "configs/presets/quickstart-warmup.jsonl"):
        (place,) = {line.split()[-1] for line in resolved.splitlines() if line.endswith(name)}
        assert installed.folder in Path(place).parents


def test_users_files_with_helpers_and_folders_named_as_ours(installed: Installation) -> None:
    for name, text in {
        "rewards/configs/weights.py": "WEIGHT = 0.25\n",
        "rewards/helper.py": "from configs.weights import WEIGHT\n"
        "def reward_of(sample):\n    return WEIGHT\n",
        "rewards/reward.py": "import helper\n"
        "async def reward_func(args, sample, **kw):\n    return helper.reward_of(sample)\n",
        "filters/helper.py": "from slipstream import DynamicFilterOutput\n",
        "filters/pipeline.py": "KEEP = True\n",
        "filters/keep.py": "def keep(args, samples, **kw):\n    import helper, pipeline\n"
        "    return helper.DynamicFilterOutput(keep=pipeline.KEEP)\n",
    }.items():
        file = installed.elsewhere / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    flags = ("--mock", "--num-rollout", "2", "--name", "helpers")
    flags += ("--custom-rm-path", "rewards/reward.py")
    flags += ("--dynamic-sampling-filter-path", "filters/keep.py")
    trained = installed.run("slipstream", "train", *flags)
    assert trained.returncode == 0, trained.stdout + trained.stderr
    assert "Mean reward went from 0.250" in trained.stdout + trained.stderr


def test_a_mistake_names_the_command_that_was_typed(installed: Installation) -> None:
    answer = installed.run("slipstream", "train", "--mok")
    assert answer.returncode == 2
    assert answer.stderr.startswith("slipstream train: error: unknown flag --mok")


TYPED = """\
from slipstream import DynamicFilterOutput, Sample, __version__, open_session

async def generate(args: object, sample: Sample, sampling_params: dict[str, object]) -> Sample:
    async with open_session(args, sample, sampling_params) as session:
        await session.generate(stop=["</calc>"])
    return sample

version: str = __version__
wrong: int = Sample(prompt="a").response
"""


def test_what_users_import_is_typed(installed: Installation) -> None:
    (installed.elsewhere / "mine.py").write_text(TYPED)
    cache = installed.elsewhere / ".mypy_cache"
    command = [sys.executable, "-m", "mypy", "--cache-dir", str(cache), "mine.py"]
    command += ["--python-executable", str(installed.folder / "bin" / "python")]
    answer = subprocess.run(
        command, cwd=installed.elsewhere, capture_output=True, text=True, timeout=300
    )
    errors = [line for line in answer.stdout.splitlines() if ": error: " in line]
    assert len(errors) == 1, answer.stdout + answer.stderr
    assert (
        'mine.py:9: error: Incompatible types in assignment (expression has type "str"'
        in (errors[0])
    )


def test_what_users_import_is_light(installed: Installation) -> None:
    heavy = ("torch", "ray", "sglang", "megatron", "transformers")
    program = f"import sys, slipstream; print(sorted(set({heavy}) & sys.modules.keys()))"
    answer = installed.run("python", "-c", program)
    assert (answer.returncode, answer.stdout) == (0, "[]\n"), answer.stderr
