#include "cpu/threads.h"

#include <atomic>

namespace nybble::cpu {
namespace {

void run_serial(int64_t n, int64_t, Body body, void* context) {
  if (n > 0) body(0, n, context);
}
int64_t one_thread() { return 1; }

// Two atomics, not one of both: a pool is set once, when the library is loaded, before any op runs.
std::atomic<ParallelFor> run_pool{run_serial};
std::atomic<int64_t (*)()> pool_threads{one_thread};

}  // namespace

void set_pool(Pool pool) {
  run_pool = pool.run ? pool.run : run_serial;
  pool_threads = pool.threads ? pool.threads : one_thread;
}

int64_t threads() { return pool_threads.load()(); }

void parallel_for(int64_t n, int64_t grain, Body body, void* context) {
  if (n <= 0) return;
  if (n <= grain)
    body(0, n, context);  // one piece needs no pool
  else
    run_pool.load()(n, grain < 1 ? 1 : grain, body, context);
}

}  // namespace nybble::cpu
