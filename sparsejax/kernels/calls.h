// What handlers of XLA's calls share: names of buffers, threads, types.

#ifndef SPARSEJAX_CALLS_H_
#define SPARSEJAX_CALLS_H_

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>

#include "kernels.h"
#include "xla/ffi/api/ffi.h"

namespace sparsejax {

namespace ffi = xla::ffi;
using Floats = ffi::Buffer<ffi::F32>;
using Ints = ffi::Buffer<ffi::S32>;
using Shorts = ffi::Buffer<ffi::U16>;

// Less work than this many products or keys is done by the calling thread.
constexpr int64_t kWorthThreads = 1 << 18;

// How often the caller looks whether others are done before it sleeps: about
// 20 microseconds.
constexpr int kSpins = 2000;

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// Runs parts on XLA's own threads, as many as the process may use. The caller
// works too and waits only for parts that somebody has begun: so it does not
// matter if no thread is free, and one that comes late finds nothing to do.
class Crew {
 public:
  explicit Crew(ffi::ThreadPool& pool) : pool_(pool) {}

  int64_t threads() const { return std::max<int64_t>(1, pool_.num_threads()); }

  void run(int64_t parts, const std::function<void(int64_t)>& each) {
    struct Job {
      std::function<void(int64_t)> each;
      int64_t parts;
      std::atomic<int64_t> next{0};
      std::atomic<int64_t> done{0};
      std::mutex mutex;
      std::condition_variable all;
    };
    const auto job = std::make_shared<Job>();
    job->each = each;
    job->parts = parts;
    const auto work = [job] {
      int64_t done = 0;
      for (int64_t i; (i = job->next++) < job->parts; ++done) job->each(i);
      if (!done) return;
      const std::lock_guard<std::mutex> lock(job->mutex);
      job->done += done;
      if (job->done == job->parts) job->all.notify_all();
    };
    const int64_t helpers = std::min(threads(), parts) - 1;
    for (int64_t i = 0; i < helpers; ++i) {
      pool_.Schedule(std::function<void()>(work));
    }
    work();
    // Parts take a few microseconds, and to be woken takes many.
    for (int i = 0; i < kSpins && job->done != job->parts; ++i) pause();
    std::unique_lock<std::mutex> lock(job->mutex);
    job->all.wait(lock, [&] { return job->done == job->parts; });
  }

 private:
  ffi::ThreadPool& pool_;
};

// Work that threads share, each part done by one of them.
class Shares {
 public:
  explicit Shares(int64_t count) : count_(count) {}

  // Does parts that nobody has begun, and returns when all are done. It waits
  // for threads at work only, never for one that is still to come.
  template <class Each>
  void help(const Each& each) {
    for (int64_t i; (i = next_++) < count_; ++done_) each(i);
    while (done_ < count_) std::this_thread::yield();
  }

 private:
  const int64_t count_;
  std::atomic<int64_t> next_{0}, done_{0};
};

inline std::optional<Type> type_of(ffi::DataType type) {
  if (type == ffi::F32) return Type::kFloat32;
  if (type == ffi::BF16) return Type::kBfloat16;
  return std::nullopt;
}

inline ffi::Error wrong_type() {
  return ffi::Error::InvalidArgument("values are float32 or bfloat16");
}

}  // namespace sparsejax

#endif  // SPARSEJAX_CALLS_H_
