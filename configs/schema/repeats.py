"""Flags that may be given several times."""

# of a field with many values: every mention of its flag adds to what it says
REPEATS = {"repeats": True}
