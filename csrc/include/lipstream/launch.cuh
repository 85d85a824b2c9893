// Starts a kernel. A separate function, so that tests can run the same launchers on a CPU.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

namespace lipstream::cuda {

template <typename... Parameters, typename... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared, cudaStream_t stream,
                   Arguments... arguments) {
  kernel<<<grid, block, shared, stream>>>(static_cast<Parameters>(arguments)...);
  return cudaGetLastError();
}

}  // namespace lipstream::cuda
