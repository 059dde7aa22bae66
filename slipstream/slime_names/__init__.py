"""The folder that holds our package `slime`. It goes by that name only
(pipeline/core/slime_names.py), and imports within it are relative."""
