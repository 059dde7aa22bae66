"""Agents of the user's, one a sample: a command, or a function. They know the gateway's address and
their token, and nothing else of the run."""
