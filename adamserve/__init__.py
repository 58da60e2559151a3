"""adamserve: a distributed optimizer service for parameter servers.

with adamserve.connect("127.0.0.1:50051", job="demo") as client:
    client.create({"w": w}, optim.Adam(lr=1e-3))
    params, clock = client.pull()
    receipt = client.push({"w": gradient}, clock=clock)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from adamserve.client.asyncio_client import AsyncClient, connect_async
    from adamserve.client.client import Client, connect
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


_HOMES = {
    "AdamServeError": "errors",
    "AsyncClient": "client.asyncio_client",
    "Client": "client.client",
    "RemoteOptimizer": "client.remote_optimizer",
    "RolledBack": "errors",
    "SparseRows": "values",
    "connect": "client.client",
    "connect_async": "client.asyncio_client",
}


def __getattr__(name: str) -> Any:
    """Load a public name at its first use: importing the package loads neither numpy, grpc nor torch."""
    if name in _HOMES:
        return getattr(import_module(f"adamserve.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
