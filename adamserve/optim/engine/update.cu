extern "C" __global__ void $name(int n, $numbers$arrays) {
$constants    const long long stride = (long long)gridDim.x * blockDim.x;
    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += stride) {
$body    }
}
