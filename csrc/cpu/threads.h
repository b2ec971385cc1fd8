// Parallel loops over whatever pool the host program owns; serial until one is given.
#pragma once
#include <atomic>
#include <cstdint>

namespace nybble::cpu {

using Body = void (*)(int64_t begin, int64_t end, void* context);
// Runs body over [0, n) in pieces of at least `grain`, on `threads()` threads, and returns when all are done.
using ParallelFor = void (*)(int64_t n, int64_t grain, Body body, void* context);

struct Pool {
  ParallelFor run;
  int64_t (*threads)();
};
void set_pool(Pool pool);  // the binding gives torch's, so that one pool serves both
int64_t threads();
void parallel_for(int64_t n, int64_t grain, Body body, void* context);

template <typename F>
void parallel_for(int64_t n, int64_t grain, const F& f) {
  parallel_for(n, grain, [](int64_t b, int64_t e, void* c) { (*static_cast<const F*>(c))(b, e); },
               const_cast<void*>(static_cast<const void*>(&f)));
}

// The same for pieces that take unlike times: the pool's threads take pieces from one counter, smaller ones toward the end.
template <typename F>
void parallel_shared(int64_t n, int64_t grain, const F& f) {
  const int64_t workers = threads();
  std::atomic<int64_t> next{0};
  parallel_for(workers, 1, [&](int64_t first, int64_t last) {
    for (int64_t begin = next.load(); first < last && begin < n;) {
      const int64_t share = (n - begin) / (2 * workers), piece = share > grain ? share : grain;
      const int64_t end = begin + piece < n ? begin + piece : n;
      if (!next.compare_exchange_weak(begin, end)) continue;
      f(begin, end);
      begin = next.load();
    }
  });
}

}  // namespace nybble::cpu
