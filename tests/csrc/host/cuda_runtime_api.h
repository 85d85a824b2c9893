// CUDA's words for code that runs on the host, as far as the ring's kernels and launchers use them. Tests only.
#pragma once

#include <cstddef>
#include <cstring>

#define __global__
#define __device__
#define __host__
#define __shared__

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1 };
enum cudaMemcpyKind { cudaMemcpyDeviceToDevice = 3 };
using cudaStream_t = struct CUstream_st*;

struct Index {
  unsigned x;
};
inline Index blockIdx, threadIdx, blockDim;
void __syncthreads();

inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t) {
  std::memcpy(to, from, bytes);
  return cudaSuccess;
}
