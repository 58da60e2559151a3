"""Whether a worker can reach every shard, found out before its first step rather than in the middle of it."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from adamserve.client.link import Credentials
from adamserve.cluster.process import ProcessInfo
from adamserve.errors import Unavailable

WITHIN_S = 5.0
"""Longest that all shards together may take to answer."""


def probe(
    shards: Sequence[ProcessInfo], credentials: Credentials, *, node: str, within_s: float = WITHIN_S
) -> None:
    """Connect to both ports of every shard, all at once, and hang up.

    Args:
        shards: the service's processes.
        credentials: how to connect.
        node: name of this node, for the error.
        within_s: longest that this may take.

    Raises:
        Unavailable: names this node, the shard's node, the port that cannot be reached, and the cause.
    """
    deadline = time.monotonic() + within_s
    asked = [
        (index, info, endpoint, tls)
        for index, info in enumerate(shards)
        for endpoint, tls in ((info.direct, True), (info.endpoint, False))
    ]
    with ThreadPoolExecutor(max_workers=max(1, len(asked))) as pool:
        causes = list(pool.map(lambda one: _cause(one[2], credentials if one[3] else None, deadline), asked))
    for (index, info, endpoint, _), cause in zip(asked, causes, strict=True):
        if cause:
            raise Unavailable(
                f"node {node} cannot reach shard {index} on node {info.node} at {endpoint}: {cause}",
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
