"""adamserve: a distributed optimizer service for parameter servers.

with adamserve.connect("127.0.0.1:50051", job="demo") as client:
    client.create({"w": w}, optim.Adam(lr=1e-3))
    params, clock = client.pull()
    receipt = client.push({"w": gradient}, clock=clock)
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from adamserve.client.asyncio_client import AsyncClient, connect_async
    from adamserve.client.client import Client
    from adamserve.client.connect import connect
    from adamserve.client.remote_optimizer import RemoteOptimizer
    from adamserve.errors import AdamServeError, RolledBack
    from adamserve.values import SparseRows

__all__ = [
    "AdamServeError",
    "AsyncClient",
    "Client",
    "RemoteOptimizer",
    "RolledBack",
    "SparseRows",
    "__version__",
    "connect",
    "connect_async",
]


def __getattr__(name: str) -> Any:
    """Load a public name at its first use: importing the package loads neither numpy, grpc nor torch."""
    if name in ("Client", "connect"):
        from adamserve.client import connect

        return getattr(connect, name)
    if name in ("AsyncClient", "connect_async"):
        from adamserve.client import asyncio_client

        return getattr(asyncio_client, name)
    if name in ("AdamServeError", "RolledBack"):
        from adamserve import errors

        return getattr(errors, name)
    if name == "SparseRows":
        from adamserve.values import SparseRows

        return SparseRows
    if name == "RemoteOptimizer":
        from adamserve.client.remote_optimizer import RemoteOptimizer

        return RemoteOptimizer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
