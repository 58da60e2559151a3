"""The gRPC edge: trainers outside the cluster push and pull straight to the shards.

wire.py     the few protobuf fields that carry tensors, read and written without copying the tensor
codec.py    elements <-> bytes: float32, float64, bfloat16, float16, int8 in blocks
status.py   our errors <-> gRPC statuses
client.py   `adamserve.connect`; needs numpy, grpcio and protobuf only
server.py   one endpoint a shard process, started inside it
control.py  the service's one endpoint: jobs, and who takes part
"""
