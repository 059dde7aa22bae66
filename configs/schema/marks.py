"""What a field's metadata says of its flag."""

from collections.abc import Mapping

# of a field with many values: every mention of its flag adds to what it says
REPEATS: Mapping[str, bool] = {"repeats": True}
# of a password: nothing that is printed, written or logged has its value
SECRET: Mapping[str, bool] = {"secret": True}
# SGLang's options that are shown nowhere, and kept nowhere
SECRET_OPTIONS = frozenset({"api_key", "admin_api_key"})
