// Which part of the tokens is a thread's own.
#pragma once
#include <algorithm>
#include <cstdint>

struct Share {
  int begin, end;
};

// As many of `count` things for each of `threads`, in whole units.
static inline Share even(int count, int unit, int threads, int thread) {
  const int64_t units = (count + unit - 1) / unit;
  const auto until = [&](int64_t t) { return std::min(count, (int)(units * t / threads) * unit); };
  return {until(thread), until(thread + 1)};
}

#if defined(DEPTHDIAL_AMX)
#include "panel.h"

// Whole groups of `count` tokens, about as much work for each thread; work(i): of token i. Late tokens see more keys.
template <class Work>
static inline Share by_work(int count, int threads, int thread, Work work) {
  const auto group = [&](int first) {
    double sum = 0;
    for (int i = first; i < std::min(count, first + amx::LANES); ++i) sum += work(i);
    return sum;
  };
  double total = 0, before = 0;
  for (int i = 0; i < count; i += amx::LANES) total += group(i);
  Share found = {count, count};
  for (int i = 0; i < count; i += amx::LANES) {
    const double here = group(i);
    const int owner = std::min(threads - 1, (int)((before + here / 2) * threads / total));
    before += here;
    if (owner != thread) continue;
    if (found.begin == count) found.begin = i;
    found.end = std::min(count, i + amx::LANES);
  }
  return found;
}
#endif
