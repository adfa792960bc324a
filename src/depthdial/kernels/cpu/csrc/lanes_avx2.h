// AVX2 with FMA and F16C: two vectors for 16 lanes.
#pragma once
#include <immintrin.h>

namespace blocks {

struct Floats {
  __m256 v[2];
};
struct Bytes {
  __m256i v[2];
};
using Half = float;  // no activations are packed as bf16

static inline Floats operator*(Floats a, Floats b) {
  return {{_mm256_mul_ps(a.v[0], b.v[0]), _mm256_mul_ps(a.v[1], b.v[1])}};
}
static inline Floats fma(Floats a, Floats b, Floats c) {
  return {{_mm256_fmadd_ps(a.v[0], b.v[0], c.v[0]), _mm256_fmadd_ps(a.v[1], b.v[1], c.v[1])}};
}
static inline Floats all(float x) { return {{_mm256_set1_ps(x), _mm256_set1_ps(x)}}; }
static inline void store(float* to, Floats x) {
  for (int h = 0; h < 2; ++h) _mm256_storeu_ps(to + 8 * h, x.v[h]);
}
static inline Floats from_fp16(const void* p) {
  const __m128i* from = (const __m128i*)p;
  return {{_mm256_cvtph_ps(_mm_loadu_si128(from)), _mm256_cvtph_ps(_mm_loadu_si128(from + 1))}};
}
static inline Floats from_int8(const void* p) {
  const __m128i x = _mm_loadu_si128((const __m128i*)p);
  return {{_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(x)), _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(x, 8)))}};
}
static inline Floats from_uint8(const void* p) {
  const __m128i x = _mm_loadu_si128((const __m128i*)p);
  return {{_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(x)), _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_srli_si128(x, 8)))}};
}

static inline Bytes load(const uint8_t* p) {
  return {{_mm256_loadu_si256((const __m256i*)p), _mm256_loadu_si256((const __m256i*)p + 1)}};
}
static inline void store(uint8_t* to, Bytes x) {
  for (int h = 0; h < 2; ++h) _mm256_storeu_si256((__m256i*)to + h, x.v[h]);
}
static inline __m256i low_nibbles(__m256i x) { return _mm256_and_si256(x, _mm256_set1_epi8(15)); }
static inline __m256i high_nibbles(__m256i x) { return low_nibbles(_mm256_srli_epi16(x, 4)); }
static inline Bytes low_nibbles(Bytes x) { return {{low_nibbles(x.v[0]), low_nibbles(x.v[1])}}; }
static inline Bytes high_nibbles(Bytes x) { return {{high_nibbles(x.v[0]), high_nibbles(x.v[1])}}; }

// x | (bits, moved right by SHIFT, & MASK)
template <int SHIFT, int MASK>
static inline Bytes with_bits(Bytes x, Bytes bits) {
  for (int h = 0; h < 2; ++h) {
    __m256i b = bits.v[h];
    if constexpr (SHIFT > 0) b = _mm256_srli_epi16(b, SHIFT);
    else b = _mm256_slli_epi16(b, -SHIFT);
    x.v[h] = _mm256_or_si256(x.v[h], _mm256_and_si256(b, _mm256_set1_epi8(MASK)));
  }
  return x;
}

using Codes = const Bytes (&)[8];

template <class X, int BITS>
constexpr float surplus() {
  return 0.0f;
}

// Products of two codes at a time stay within int16 up to 7 bits; 8 bits are taken as two nibbles.
template <int BITS, int COUNT, int FIRST>
static inline Floats dot(Codes codes, const int8_t* x) {
  const Bytes* q = codes + FIRST;
  __m256i sum[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
  const __m256i one = _mm256_set1_epi16(1), sixteen = _mm256_set1_epi16(16);
  for (int i = 0; i < COUNT; ++i) {
    int32_t bytes;
    memcpy(&bytes, x + 4 * i, 4);
    const __m256i token = _mm256_set1_epi32(bytes);
    for (int h = 0; h < 2; ++h) {
      const auto add = [&](__m256i codes, __m256i by) {
        sum[h] = _mm256_add_epi32(sum[h], _mm256_madd_epi16(_mm256_maddubs_epi16(codes, token), by));
      };
      if constexpr (BITS == 8) {
        add(low_nibbles(q[i].v[h]), one);
        add(high_nibbles(q[i].v[h]), sixteen);
      } else {
        add(q[i].v[h], one);
      }
    }
  }
  return {{_mm256_cvtepi32_ps(sum[0]), _mm256_cvtepi32_ps(sum[1])}};
}

template <int BITS, int COUNT, int FIRST>
static inline Floats dot(Codes codes, const float* x) {
  const Bytes* q = codes + FIRST;
  Floats sum = all(0.0f);
  const __m256i low = _mm256_set1_epi32(255);
  for (int i = 0; i < COUNT; ++i)
    each<4>([&](auto c) {
      const __m256 token = _mm256_set1_ps(x[4 * i + c]);
      for (int h = 0; h < 2; ++h) {
        const __m256i code = _mm256_and_si256(_mm256_srli_epi32(q[i].v[h], 8 * c), low);
        sum.v[h] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(code), token, sum.v[h]);
      }
    });
  return sum;
}

// What tokens packed as X are multiplied by.
template <class X, int BITS>
using Ready = Codes;

}  // namespace blocks
