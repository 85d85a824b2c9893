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
alignas(16) inline float angles[kSharedMemory / sizeof(float)];  // the kernels' `extern __shared__ float angles[]`

class Block {
 public:
  explicit Block(unsigned threads) : threads_(threads), order_(threads) {
    for (unsigned i = 0; i < threads; ++i) {
      threads_[i].stack.resize(kStack);
      order_[i] = i;
    }
  }

  void run(const std::function<void()>& body) {
    body_ = &body;
    for (Thread& thread : threads_) {
      getcontext(&thread.context);
      thread.context.uc_stack.ss_sp = thread.stack.data();
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
        threadIdx.x = i;
        current = this;
        enter(now_->context, main_, now_->stack.data(), kStack);
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
  struct Thread {
    ucontext_t context;
    std::vector<char> stack;
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

template <typename... Parameters, typename... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), unsigned blocks, unsigned threads, size_t shared, cudaStream_t,
                   Arguments... arguments) {
  if (blocks < 1 || threads < 1 || threads > 1024 || shared > kSharedMemory) return cudaErrorInvalidValue;
  Block block(threads);
  blockDim.x = threads;
  for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x) {
    ASAN_UNPOISON_MEMORY_REGION(angles, sizeof angles);
    std::fill(std::begin(angles), std::end(angles), std::numeric_limits<float>::quiet_NaN());
    ASAN_POISON_MEMORY_REGION(reinterpret_cast<char*>(angles) + shared, sizeof angles - shared);
    block.run([&] { kernel(static_cast<Parameters>(arguments)...); });
  }
  ASAN_UNPOISON_MEMORY_REGION(angles, sizeof angles);
  return cudaSuccess;
}

}  // namespace lipstream::cuda

inline void __syncthreads() {
#if !defined(LIPSTREAM_WITHOUT_BARRIERS)  // a test of this test
  lipstream::cuda::Block::current->barrier();
#endif
}
