"""One HTTP address in front of all engines, which speaks SGLang's native protocol: for functions
that POST to `args.sglang_router_ip`:`args.sglang_router_port`, as slime's do."""

from stages.generate.router.server import Router as Router
