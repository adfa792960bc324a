// Dot products of R rows of weights with M tokens in plain C++: any machine with a compiler.
#pragma once
#include <cstddef>
#include <cstdint>

namespace isa {

using Half = float;
constexpr int TOKENS = 1;

static inline float widen(uint16_t bits) {
  const uint32_t wide = (uint32_t)bits << 16;
  float value;
  __builtin_memcpy(&value, &wide, 4);
  return value;
}

static inline float widen(float value) { return value; }

// out [M][R]. w (bf16 or fp32): rows of `cols` values, `line` values apart; x: rows `pitch` apart.
template <int R, int M, class W>
static inline void dot(const W* w, int cols, size_t line, const float* x, size_t pitch, float* out) {
  for (int r = 0; r < R; ++r)
    for (int m = 0; m < M; ++m) {
      const W* row = w + r * line;
      const float* token = x + m * pitch;
      float sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int k = 0; k < cols; ++k) sum += widen(row[k]) * token[k];
      out[m * R + r] = sum;
    }
}

// x: int8 in blocks of 64 whose scales are xs, `blocks` a token.
template <int R, int M>
static inline void dot(const int8_t* w, int cols, size_t line, const int8_t* x, size_t pitch, const float* xs, size_t blocks,
                       float* out) {
  for (int r = 0; r < R; ++r)
    for (int m = 0; m < M; ++m) {
      float sum = 0;
      for (int k = 0, block = 0; k < cols; k += 64, ++block) {
        const int8_t* row = w + r * line + k;
        const int8_t* token = x + m * pitch + k;
        const int count = cols - k < 64 ? cols - k : 64;
        int exact = 0;
#pragma omp simd reduction(+ : exact)
        for (int j = 0; j < count; ++j) exact += (int)row[j] * (int)token[j];
        sum += exact * xs[m * blocks + block];
      }
      out[m * R + r] = sum;
    }
}

}  // namespace isa
