// Vectors of 16 lanes, one for each row of a panel, for `blocks.h`: what an instruction set does with them.
#pragma once
#include <type_traits>

#include "abi.h"
#include "elementwise.h"

namespace blocks {

// work(0), work(1), ... work(COUNT - 1), each number known to the compiler.
template <int COUNT, class Work, int... I>
__attribute__((always_inline)) static inline void each_of(Work work, std::integer_sequence<int, I...>) {
  (work(std::integral_constant<int, I>()), ...);
}
template <int COUNT, class Work>
__attribute__((always_inline)) static inline void each(Work work) {
  each_of<COUNT>(work, std::make_integer_sequence<int, COUNT>());
}

}  // namespace blocks

#if defined(DEPTHDIAL_AVX512)
#include "lanes_avx512.h"
#elif defined(DEPTHDIAL_AVX2)
#include "lanes_avx2.h"
#else
#include "lanes_portable.h"
#endif

namespace blocks {

// Packed tokens. values: [tokens, pitch]; sums: [tokens, pitch / 32, 2], of each block and of its first half.
template <class X>
struct Input {
  const X* values;
  const float *sums, *scales;
  int tokens, pitch;

  // What a product has too much of each code.
  template <int BITS>
  static constexpr float extra = surplus<X, BITS>();

  Floats scale(int token, int block) const {
    if constexpr (std::is_same_v<X, int8_t>) return all(scales[(size_t)token * (pitch / 32) + block]);
    else return all(1.0f);
  }
};

}  // namespace blocks
