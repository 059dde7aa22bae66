"""The two families of flags that are not ours: SGLang's and Megatron's, by name only until they are needed."""

from __future__ import annotations

FAMILIES = ()
