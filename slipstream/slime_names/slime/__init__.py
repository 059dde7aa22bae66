"""slime's names for what users' functions import from it, standing for ours.

It is found where no real slime is installed, and only once a user's function is loaded.
docs/custom-functions.md lists the names."""
