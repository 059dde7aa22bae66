"""What every process of an environment without a GPU needs, whoever started it and wherever.

`make setup` runs `python -m compat.environment`. That copies this folder into the environment's
site-packages, with a `.pth` file beside it through which Python runs `install()` whenever it
starts. So a checkpoint loads in a notebook, in TRL or in a script that knows nothing of Slipstream.

- `torchvision_ops`: the PyPI wheel of torchvision is a CUDA build whose `_C.so` does not load
  beside a CPU torch; its operators are then undeclared and `import torchvision` fails, and with it
  most of transformers. Does nothing where `_C.so` loads.
- `inert_triton`: SGLang decorates Triton kernels at import, and none runs on its CPU path. Does
  nothing where Triton is installed.

Installing adds two import hooks and imports nothing: a process that needs neither pays no time."""

import sys

from .hooks import ImportHook


def install() -> None:
    """Adds the hooks. It may be called more than once."""
    hooks = (ImportHook("torchvision", declare_operators), ImportHook("sglang", allow_declarations))
    for hook in hooks:
        if hook not in sys.meta_path:
            sys.meta_path.insert(0, hook)


def declare_operators() -> None:
    """This is called right before torchvision runs."""
    from .torchvision_ops import declare_operators

    declare_operators()


def allow_declarations() -> None:
    """This is called right before SGLang runs."""
    from .inert_triton import InertTritonFinder

    sys.meta_path.append(InertTritonFinder())  # last: a real Triton wins
