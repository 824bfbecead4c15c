// An emulated GPU's threads: how they run, and how they wait for one another.
//
// Threads are fibres of one processor thread. One runs until it waits; a block whose threads all wait for others that
// never come is reported. Blocks run one after another, their threads in turns from the first or from the last on, so
// that a barrier that is missing shows.
#pragma once

#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <algorithm>
#include <csetjmp>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <vector>

constexpr int kWarp = 32, kMostThreads = 1024;

[[noreturn]] inline void fail(const char* what, const void* where = nullptr) {
  std::fprintf(stderr, "emulated GPU: %s %p\n", what, where);
  std::abort();
}

// Threads that wait for one another: those of a warp or of a block.
struct Meeting {
  uint32_t members = 0, arrived = 0, round = 0;

  void leave() {
    members--;
    if (members > 0 && arrived == members) next();
  }
  void next() {
    arrived = 0;
    round++;
  }
};

struct Warp {
  Meeting meeting;
  // What lanes show one another, in two sets in turns: one is read while the next is written.
  uint64_t shown[2][kWarp][4];
};

struct Block {
  Meeting meeting;
  jmp_buf scheduler;
};

// A thread of a block; a GPU's own derives from it.
struct BlockThread {
  uint32_t tid[3], ntid[3], ctaid[3], nctaid[3];
  uint32_t number;
  Block* block;
  Warp* warp;
  uint32_t set = 0;
  const Meeting* awaited = nullptr;
  uint32_t awaited_round = 0;
  bool done = false;
  jmp_buf here;

  // As at a kernel's start.
  void restart() {
    set = 0;
    awaited = nullptr;
    done = false;
  }

  uint32_t laneid() const { return number % kWarp; }
  uint32_t warpid() const { return number / kWarp; }
  bool waits() const { return awaited && awaited->round == awaited_round; }

  void meet(Meeting& meeting) {
    if (++meeting.arrived == meeting.members) return meeting.next();
    awaited = &meeting;
    awaited_round = meeting.round;
    if (!_setjmp(here)) _longjmp(block->scheduler, 1);
    awaited = nullptr;
  }
  void meet_block() { meet(block->meeting); }
  void meet_warp() { meet(warp->meeting); }

  // Everybody's of the warp, once all have shown theirs.
  uint64_t (*show(uint64_t a, uint64_t b = 0, uint64_t c = 0, uint64_t d = 0))[4] {
    auto* shown = warp->shown[set];
    set ^= 1;
    const uint64_t own[4] = {a, b, c, d};
    std::memcpy(shown[laneid()], own, sizeof own);
    meet_warp();
    return shown;
  }
};

struct Size {
  uint32_t x, y, z;
};

// Memory that ends at a page that nobody may touch, and starts as NaNs.
struct GuardedMemory {
  void* start = MAP_FAILED;
  size_t mapped = 0;
  uint8_t* bytes = nullptr;

  // `size` is rounded up to `aligned`; `bytes` is null where there is no more memory.
  GuardedMemory(size_t size, size_t aligned) {
    const size_t page = getpagesize(), used = (size + aligned - 1) / aligned * aligned;
    mapped = (used + page - 1) / page * page + page;
    start = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (start == MAP_FAILED) return;
    auto* end = static_cast<uint8_t*>(start) + mapped - page;
    mprotect(end, page, PROT_NONE);
    bytes = end - used;
    fill();
  }
  void fill() const { std::memset(bytes, 0xff, static_cast<uint8_t*>(start) + mapped - getpagesize() - bytes); }
  void release() const { munmap(start, mapped); }
};

// Runs kernels whose threads are `Thread`s.
template <class Thread>
class Fibres {
 public:
  using Code = std::function<void(Thread&)>;

  // Runs `code` on every thread of every block; `begin` comes before each block.
  static void run(const std::string& name, Size grid, Size size, Code code, const std::function<void()>& begin) {
    const uint32_t threads = size.x * size.y * size.z;
    std::vector<Warp> warps((threads + kWarp - 1) / kWarp);
    running.code = std::move(code);
    for (uint32_t z = 0; z < grid.z; z++)
      for (uint32_t y = 0; y < grid.y; y++)
        for (uint32_t x = 0; x < grid.x; x++) {
          Block block{};
          begin();
          block.meeting.members = threads;
          for (size_t w = 0; w < warps.size(); w++)
            warps[w].meeting = {uint32_t(std::min<int>(kWarp, threads - w * kWarp)), 0, 0};
          for (uint32_t t = 0; t < threads; t++) {
            Fibre& fibre = all()[t];
            Thread& thread = fibre.thread;
            const uint32_t of_axes[][3] = {{t % size.x, t / size.x % size.y, t / size.x / size.y},
                                           {size.x, size.y, size.z},
                                           {x, y, z},
                                           {grid.x, grid.y, grid.z}};
            std::memcpy(thread.tid, of_axes[0], sizeof thread.tid);
            std::memcpy(thread.ntid, of_axes[1], sizeof thread.ntid);
            std::memcpy(thread.ctaid, of_axes[2], sizeof thread.ctaid);
            std::memcpy(thread.nctaid, of_axes[3], sizeof thread.nctaid);
            thread.restart();
            thread.number = t;
            thread.block = &block;
            thread.warp = &warps[t / kWarp];
            make_ready(fibre);
          }
          run_block(name, warps, threads);
          running.backwards = !running.backwards;
        }
  }

  static Thread& current() { return *running.thread; }

 private:
  static constexpr size_t kStack = 256 << 10;

  struct Fibre {
    Thread thread;
    ucontext_t start;
    std::unique_ptr<char[]> stack{new char[kStack]};
  };

  struct Running {
    Code code;
    Thread* thread = nullptr;
    bool backwards = false;
  };
  static inline Running running;

  static std::vector<Fibre>& all() {
    static std::vector<Fibre> fibres(kMostThreads);
    return fibres;
  }

  static void enter() {
    Thread& thread = *running.thread;
    running.code(thread);
    thread.done = true;
    thread.warp->meeting.leave();
    thread.block->meeting.leave();
    _longjmp(thread.block->scheduler, 1);
  }

  [[gnu::noinline]] static void make_ready(Fibre& fibre) {
    getcontext(&fibre.start);
    fibre.start.uc_stack.ss_sp = fibre.stack.get();
    fibre.start.uc_stack.ss_size = kStack;
    fibre.start.uc_link = nullptr;
    makecontext(&fibre.start, enter, 0);
  }

  // Runs a thread until it waits or ends. It keeps nothing that a jump back could spoil.
  [[gnu::noinline]] static void go_on(Fibre& fibre, bool started) {
    if (_setjmp(fibre.thread.block->scheduler)) return;
    running.thread = &fibre.thread;
    if (started) _longjmp(fibre.thread.here, 1);
    setcontext(&fibre.start);
  }

  static void run_block(const std::string& name, const std::vector<Warp>& warps, int threads) {
    std::vector<bool> started(threads);
    for (int alive = threads; alive > 0;) {
      bool moved = false;
      for (size_t w = 0; w < warps.size(); w++) {
        const int first = (running.backwards ? warps.size() - 1 - w : w) * kWarp;
        const int count = std::min(kWarp, threads - first);
        for (bool again = true; again;) {
          again = false;
          for (int i = 0; i < count; i++) {
            const int t = first + (running.backwards ? count - 1 - i : i);
            Fibre& fibre = all()[t];
            if (fibre.thread.done || fibre.thread.waits()) continue;
            go_on(fibre, started[t]);
            started[t] = true;
            again = moved = true;
            alive -= fibre.thread.done;
          }
        }
      }
      if (!moved) fail(("threads wait for others that never come, in " + name).c_str());
    }
  }
};
