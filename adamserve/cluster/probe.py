"""Whether a worker can reach every shard, found out before its first step rather than in the middle of it."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from adamserve.client.credentials import Credentials
from adamserve.cluster.process import ProcessInfo
from adamserve.errors import Unavailable

WITHIN_S = 4.0
"""Longest that all shards together may take to answer."""


def probe(
    target: str,
    shards: Sequence[ProcessInfo],
    credentials: Credentials,
    *,
    node: str,
    within_s: float = WITHIN_S,
) -> None:
    """Connect to ControlService at `target` and to both ports of every shard, all at once, and hang up.

    Raises:
        Unavailable: names `node`, which is this one, the process and its node, the port that cannot be reached, and
            the cause.
    """
    deadline = time.monotonic() + within_s
    places: list[tuple[str, str, Credentials | None]] = [("the service", target, None)]
    for index, info in enumerate(shards):
        what = f"shard {index} on node {info.node}"
        places += [(what, info.direct, credentials), (what, info.endpoint, None)]
    with ThreadPoolExecutor(max_workers=len(places)) as pool:
        causes = list(pool.map(lambda place: _cause(place[1], place[2], deadline), places))
    for (what, endpoint, _), cause in zip(places, causes, strict=True):
        if cause:
            raise Unavailable(
                f"node {node} cannot reach {what} at {endpoint}: {cause}",
                field="shards",
                fix="open the port between the nodes; --shard-ports LOW-HIGH says which ones shards listen on",
            )


def _cause(endpoint: str, credentials: Credentials | None, deadline: float) -> str:
    """Why no connection can be made; empty where one can. With credentials, TLS is tried too."""
    seconds = max(0.1, deadline - time.monotonic())
    host, _, port = endpoint.rpartition(":")
    try:
        if credentials is not None:
            credentials.connect(endpoint, seconds).close()
        else:
            socket.create_connection((host.strip("[]"), int(port)), seconds).close()
    except TimeoutError:
        return "no answer in time; a firewall may drop the packets"
    except ssl.SSLError as error:
        return f"TLS failed: {error.reason or error}"
    except OSError as error:
        return error.strerror or str(error)
    return ""
