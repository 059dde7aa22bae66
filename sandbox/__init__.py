"""Runs Python that nobody trusts: what a model wrote.

`sandbox.pool.Sandbox` is what others use. Below it the Linux kernel does all the work, with nothing
to install: user, mount, pid, network and IPC namespaces, a root of its own with read-only views of
Python, seccomp, resource limits. Where the kernel gives no such thing, nothing is run.

- `limits`, `result`: what goes in and comes out.
- `pool`, `worker`, `resident`: the side of the owner, who is trusted.
- `inside`: what happens in the sandbox's own processes, the standard library only.

Standard library only: the processes inside start with nothing else."""
