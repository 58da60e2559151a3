"""The gRPC edge: trainers outside the cluster push and pull straight to the shards.

wire.py     the few protobuf fields that carry tensors, read and written without copying the tensor
codec.py    elements <-> bytes: float32, float64, bfloat16, float16, int8 in blocks; native.py has its inner loops
status.py   our errors <-> gRPC statuses
frames.py   messages on a bare connection
carrier.py  a client's two ways to a shard: gRPC and frames
client.py   `adamserve.connect`; needs numpy, grpcio and protobuf only
server.py   what a shard does with calls from outside; endpoint.py carries them by gRPC, direct.py by frames
control.py  the service's one endpoint: jobs, and who takes part
"""
