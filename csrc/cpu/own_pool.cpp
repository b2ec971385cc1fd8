// Threads of our own, for a torch that lends none. One loop runs at a time: its pieces are taken by whoever comes, the
// caller among them, so a thread that wakes late finds nothing left and holds nobody up.
#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>

#include "cpu/threads.h"
#ifndef _WIN32
#include <pthread.h>
#endif

namespace nybble::cpu {
namespace {

struct Loop {
  int64_t n, step;
  Body body;
  void* context;
};

class Workers {
 public:
  // False: another caller's loop is running.
  bool run(const Loop& loop, int64_t helpers) {
    const std::unique_lock<std::mutex> alone(one_caller_, std::try_to_lock);
    if (!alone.owns_lock()) return false;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      for (; started_ < helpers; ++started_) std::thread([this] { serve(); }).detach();
      loop_ = loop;
      next_ = 0;
      open_ = true;
      ++number_;
    }
    work_.notify_all();
    take_pieces();
    std::unique_lock<std::mutex> lock(mutex_);
    open_ = false;
    done_.wait(lock, [this] { return inside_ == 0; });
    return true;
  }

 private:
  void serve() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (uint64_t seen = 0;;) {
      work_.wait(lock, [&] { return number_ != seen; });
      seen = number_;
      if (!open_) continue;
      ++inside_;
      lock.unlock();
      take_pieces();
      lock.lock();
      if (--inside_ == 0) done_.notify_one();
    }
  }

  void take_pieces();

  std::mutex one_caller_, mutex_;
  std::condition_variable work_, done_;
  Loop loop_{};
  std::atomic<int64_t> next_{0};
  uint64_t number_ = 0;  // of the loop
  int64_t started_ = 0, inside_ = 0;
  bool open_ = false;  // false: the caller has gone on, and loop_ is stale
};

thread_local bool in_loop = false;
std::atomic<int64_t> wanted{1};

void Workers::take_pieces() {
  in_loop = true;
  for (int64_t begin; (begin = next_.fetch_add(loop_.step)) < loop_.n;)
    loop_.body(begin, std::min(begin + loop_.step, loop_.n), loop_.context);
  in_loop = false;
}

// Never destroyed: its threads wait in it until the process ends. A forked child has no threads and begins anew.
std::atomic<Workers*> workers{nullptr};

Workers* the_workers() {
  static const bool begun = [] {
    workers = new Workers;
#ifndef _WIN32
    pthread_atfork(nullptr, nullptr, [] { workers = new Workers; });
#endif
    return true;
  }();
  (void)begun;
  return workers;
}

void run_own(int64_t n, int64_t grain, Body body, void* context) {
  const int64_t pieces = std::min(wanted.load(), (n + grain - 1) / grain);
  // A loop within a loop, or beside another caller's, keeps to its own thread.
  if (pieces <= 1 || in_loop || !the_workers()->run({n, (n + pieces - 1) / pieces, body, context}, pieces - 1))
    body(0, n, context);
}

int64_t own_threads() { return wanted; }

}  // namespace

Pool own_pool() { return {run_own, own_threads}; }

void set_own_threads(int64_t threads) { wanted = threads; }

}  // namespace nybble::cpu
