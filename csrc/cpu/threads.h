// Parallel loops over whatever pool the host program owns; serial until one is given.
#pragma once
#include <cstdint>

namespace nybble::cpu {

using Body = void (*)(int64_t begin, int64_t end, void* context);
// Runs body over [0, n) in pieces of at least `grain`, on `threads()` threads, and returns when all are done.
using ParallelFor = void (*)(int64_t n, int64_t grain, Body body, void* context);

struct Pool {
  ParallelFor run;
  int64_t (*threads)();
};
void set_pool(Pool pool);               // the binding gives torch's, so that one pool serves both
Pool own_pool();                        // threads of our own, for a torch that lends none
void set_own_threads(int64_t threads);  // how many the own pool uses, the caller's among them
int64_t threads();
void parallel_for(int64_t n, int64_t grain, Body body, void* context);

template <typename F>
void parallel_for(int64_t n, int64_t grain, const F& f) {
  parallel_for(
      n, grain, [](int64_t b, int64_t e, void* c) { (*static_cast<const F*>(c))(b, e); },
      const_cast<void*>(static_cast<const void*>(&f)));
}

}  // namespace nybble::cpu
