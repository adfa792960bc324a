// Dot products of R rows of weights with M tokens: AVX2 with FMA.
#pragma once
#include <immintrin.h>

#include <cstddef>
#include <cstdint>

namespace isa {

using Half = float;  // bf16 weights are widened, so activations stay fp32
constexpr int TOKENS = 2;
constexpr int AHEAD = 512;  // bytes of a row fetched early

static inline float total(__m256 v) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_shuffle_ps(s, s, 1)));
}

static inline float widen(uint16_t bits) {
  const uint32_t wide = (uint32_t)bits << 16;
  float value;
  __builtin_memcpy(&value, &wide, 4);
  return value;
}

static inline float widen(float value) { return value; }

static inline __m256 load8(const uint16_t* p) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16));
}

static inline __m256 load8(const float* p) { return _mm256_loadu_ps(p); }

// out [M][R]. w (bf16 or fp32): rows of `cols` values, `line` values apart; x: rows `pitch` apart.
template <int R, int M, class W>
static inline void dot(const W* w, int cols, size_t line, const float* x, size_t pitch, float* out) {
  __m256 sum[R][M];
  for (int r = 0; r < R; ++r)
    for (int m = 0; m < M; ++m) sum[r][m] = _mm256_setzero_ps();
  int k = 0;
  for (; k + 8 <= cols; k += 8) {
    __m256 row[R];
    for (int r = 0; r < R; ++r) {
      __builtin_prefetch((const char*)(w + r * line + k) + AHEAD);
      row[r] = load8(w + r * line + k);
    }
    for (int m = 0; m < M; ++m) {
      const __m256 token = _mm256_loadu_ps(x + m * pitch + k);
      for (int r = 0; r < R; ++r) sum[r][m] = _mm256_fmadd_ps(row[r], token, sum[r][m]);
    }
  }
  for (int r = 0; r < R; ++r)
    for (int m = 0; m < M; ++m) {
      float value = total(sum[r][m]);
      for (int j = k; j < cols; ++j) value += widen(w[r * line + j]) * x[m * pitch + j];
      out[m * R + r] = value;
    }
}

// x: int8 in blocks of 64 whose scales are xs, `blocks` a token. The sign of x moves to w, since one factor must be
// unsigned; 127 * 127 * 2 stays within int16.
template <int R, int M>
static inline void dot(const int8_t* w, int cols, size_t line, const int8_t* x, size_t pitch, const float* xs,
                       size_t blocks, float* out) {
  __m256 sum[R][M];
  float rest[R][M] = {};
  for (int r = 0; r < R; ++r)
    for (int m = 0; m < M; ++m) sum[r][m] = _mm256_setzero_ps();
  const __m256i ones = _mm256_set1_epi16(1);
  for (int k = 0, block = 0; k < cols; k += 64, ++block) {
    for (int m = 0; m < M; ++m) {
      const int8_t* token = x + m * pitch + k;
      const float scale = xs[m * blocks + block];
      for (int r = 0; r < R; ++r) {
        const int8_t* row = w + r * line + k;
        __builtin_prefetch(row + AHEAD);
        if (k + 64 > cols) {
          int exact = 0;
          for (int j = 0; j < cols - k; ++j) exact += (int)row[j] * token[j];
          rest[r][m] += exact * scale;
          continue;
        }
        __m256i whole = _mm256_setzero_si256();
        for (int half = 0; half < 64; half += 32) {
          const __m256i a = _mm256_loadu_si256((const __m256i*)(token + half));
          const __m256i b = _mm256_loadu_si256((const __m256i*)(row + half));
          const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(a), _mm256_sign_epi8(b, a));
          whole = _mm256_add_epi32(whole, _mm256_madd_epi16(pairs, ones));
        }
        sum[r][m] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(whole), _mm256_set1_ps(scale), sum[r][m]);
      }
    }
  }
  for (int r = 0; r < R; ++r)
    for (int m = 0; m < M; ++m) out[m * R + r] = total(sum[r][m]) + rest[r][m];
}

}  // namespace isa
