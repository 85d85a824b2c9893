// Runs a kernel's blocks one after the other, each with as many threads as it would have, barriers and all.
//
// A block's threads are contexts of one thread of the system, run in a random order from barrier to barrier, so that a
// missing barrier shows. Shared memory is filled with NaN before every block: what is read before it is written shows,
// too. What lies behind it is poisoned where the address sanitizer looks.
#pragma once

#include <cuda_runtime_api.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <limits>
#include <memory>
#include <random>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, size) ((void)(address), (void)(size))
#define ASAN_UNPOISON_MEMORY_REGION(address, size) ((void)(address), (void)(size))
inline void __sanitizer_start_switch_fiber(void**, const void*, size_t) {}
inline void __sanitizer_finish_switch_fiber(void*, const void**, size_t*) {}
#endif

namespace lipstream::cuda {

constexpr size_t kSharedMemory = 48 << 10;  // bytes a block has without asking for more
alignas(16) inline float shared[kSharedMemory / sizeof(float)];  // the kernels' `extern __shared__ float shared[]`

class Block {
 public:
  explicit Block(unsigned threads) : threads_(threads), order_(threads) {
    while (stacks.size() < threads) stacks.emplace_back(new char[kStack]);
    for (unsigned i = 0; i < threads; ++i) {
      threads_[i].stack = stacks[i].get();
      order_[i] = i;
    }
  }

  void run(const std::function<void()>& body) {
    body_ = &body;
    for (Thread& thread : threads_) {
      getcontext(&thread.context);
      thread.context.uc_stack.ss_sp = thread.stack;
      thread.context.uc_stack.ss_size = kStack;
      thread.context.uc_link = nullptr;
      thread.done = false;
      makecontext(&thread.context, &Block::start, 0);
    }
    size_t left = threads_.size();
    while (left > 0) {
      std::shuffle(order_.begin(), order_.end(), random_);
      size_t finished = 0;
      for (const unsigned i : order_) {
        if (threads_[i].done) std::abort();  // a thread left while others wait at a barrier
        now_ = &threads_[i];
        threadIdx = {i % blockDim.x, i / blockDim.x % blockDim.y, i / blockDim.x / blockDim.y};
        current = this;
        enter(now_->context, main_, now_->stack, kStack);
        finished += now_->done;
      }
      if (finished != 0 && finished != threads_.size()) std::abort();
      left -= finished;
    }
  }

  void barrier() { leave(); }

  inline static Block* current = nullptr;

 private:
  static constexpr size_t kStack = 64 << 10;
  inline static std::vector<std::unique_ptr<char[]>> stacks;
  struct Thread {
    ucontext_t context;
    char* stack = nullptr;
    bool done = false;
  };

  static void start() {
    Block& block = *current;
    __sanitizer_finish_switch_fiber(nullptr, &block.main_stack_, &block.main_size_);
    (*block.body_)();
    current->now_->done = true;
    current->leave();
  }

  void enter(ucontext_t& to, ucontext_t& from, const void* stack, size_t size) {
    void* fake = nullptr;
    __sanitizer_start_switch_fiber(&fake, stack, size);
    swapcontext(&from, &to);
    __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
  }

  void leave() {
    Thread& thread = *now_;
    enter(main_, thread.context, main_stack_, main_size_);
  }

  std::vector<Thread> threads_;
  std::vector<unsigned> order_;
  std::mt19937 random_{0};
  ucontext_t main_;
  Thread* now_ = nullptr;
  const std::function<void()>* body_ = nullptr;
  const void* main_stack_ = nullptr;
  size_t main_size_ = 0;
};

inline int launches = 0;

template <typename... Parameters, typename... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, dim3 threads, size_t bytes, cudaStream_t,
                   Arguments... arguments) {
  const unsigned count = threads.x * threads.y * threads.z;
  if (grid.x < 1 || grid.y < 1 || grid.z < 1 || grid.x > 0x7fffffffu || grid.y > 0xffffu || grid.z > 0xffffu ||
      count < 1 || count > 1024 || bytes > kSharedMemory) {
    return cudaErrorInvalidValue;
  }
  ++launches;
  Block block(count);
  blockDim = threads;
  gridDim = grid;
  for (blockIdx.z = 0; blockIdx.z < grid.z; ++blockIdx.z) {
    for (blockIdx.y = 0; blockIdx.y < grid.y; ++blockIdx.y) {
      for (blockIdx.x = 0; blockIdx.x < grid.x; ++blockIdx.x) {
        ASAN_UNPOISON_MEMORY_REGION(shared, sizeof shared);
        std::fill(std::begin(shared), std::end(shared), std::numeric_limits<float>::quiet_NaN());
        ASAN_POISON_MEMORY_REGION(reinterpret_cast<char*>(shared) + bytes, sizeof shared - bytes);
        block.run([&] { kernel(static_cast<Parameters>(arguments)...); });
      }
    }
  }
  ASAN_UNPOISON_MEMORY_REGION(shared, sizeof shared);
  return cudaSuccess;
}

}  // namespace lipstream::cuda

inline void __syncthreads() {
#if !defined(LIPSTREAM_WITHOUT_BARRIERS)  // a test of this test
  lipstream::cuda::Block::current->barrier();
#endif
}
