"""--rollout-external-engine-addrs: engines that somebody else runs."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

from configs.schema import Config

FLAG = "--rollout-external-engine-addrs"


def endpoint_of(address: str) -> str:
    """The base URL of an engine at `host:port` or `http://host:port`, as slime writes them.

    Raises ValueError whose text says what is wrong with the address."""
    url = urlsplit(address if "://" in address else f"http://{address}")
    if url.scheme != "http":
        raise ValueError(f"it begins with {url.scheme}://, and SGLang's servers speak http")
    if url.path not in ("", "/") or url.query or url.username:
        raise ValueError("there is more than a host and a port in it")
    try:
        host, port = url.hostname, url.port
    except ValueError:
        raise ValueError("its port is no number from 1 to 65535") from None
    if not host:
        raise ValueError("it has no host")
    if not port:
        raise ValueError("it has no port")
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def external_endpoints(config: Config) -> list[str]:
    """The base URLs, in the order of the flag. Of a configuration that was validated."""
    return [endpoint_of(address) for address in config.cluster.rollout_external_engine_addrs]


def external_engines(config: Config) -> Iterator[str]:
    cluster, seen = config.cluster, dict[str, str]()
    for address in cluster.rollout_external_engine_addrs:
        try:
            endpoint = endpoint_of(address)
        except ValueError as error:
            yield (
                f"{FLAG} {address}: {error}. Expected host:port (an IPv6 host in brackets), e.g."
                " 10.0.0.7:30000"
            )
            continue
        if endpoint in seen:
            yield (
                f"{FLAG} names {endpoint} twice ({seen[endpoint]} and {address}): an engine counts"
                " once. Drop one of the two"
            )
        seen[endpoint] = address
    if not seen:
        return
    sharing = {
        "--colocate": cluster.colocate,
        "--offload": cluster.offload,
        "--offload-rollout": cluster.offload_rollout,
    }
    for flag, given in sharing.items():
        if given:
            yield (
                f"{FLAG} with {flag}: engines that somebody else runs have devices of their own,"
                f" and keep their memory. Drop {flag}"
            )
