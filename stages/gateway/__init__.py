"""Agents that speak to a model over HTTP, trained as they are: a server of OpenAI's API whose every
session is an append-only tree of tokens."""
