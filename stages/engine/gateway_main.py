"""Becomes SGLang's router: `gateway_main.py '{"port": 30000, ...}'`, with RouterArgs' own names.

Its command line does not offer every policy that it has; its arguments do."""

import json
import sys


def main() -> None:
    from sglang_router.router import Router
    from sglang_router.router_args import RouterArgs

    Router.from_args(RouterArgs(**json.loads(sys.argv[1]))).start()


if __name__ == "__main__":
    main()
