"""adamserve: a distributed optimizer service for parameter servers."""

__version__ = "0.1.0"
