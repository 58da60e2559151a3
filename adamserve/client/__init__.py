"""A pusher's side of the service; needs numpy, grpcio and protobuf only (`RemoteOptimizer` torch too)."""
