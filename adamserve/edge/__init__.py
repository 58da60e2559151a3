"""The servers: ShardService over gRPC and bare connections, ControlService, and who may call them."""
