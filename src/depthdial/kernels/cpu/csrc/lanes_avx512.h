// AVX-512 with BF16 and VNNI.
#pragma once
#include <immintrin.h>

namespace blocks {

struct Floats {
  __m512 v;
};
using Bytes = __m512i;

static inline Floats operator*(Floats a, Floats b) { return {_mm512_mul_ps(a.v, b.v)}; }
static inline Floats fma(Floats a, Floats b, Floats c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
static inline Floats all(float x) { return {_mm512_set1_ps(x)}; }
static inline void store(float* to, Floats x) { _mm512_storeu_ps(to, x.v); }
static inline Floats from_fp16(const void* p) { return {_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p))}; }
static inline Floats from_int8(const void* p) {
  return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)))};
}
static inline Floats from_uint8(const void* p) {
  return {_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p)))};
}

static inline Bytes load(const uint8_t* p) { return _mm512_loadu_si512(p); }
static inline void store(uint8_t* to, Bytes x) { _mm512_storeu_si512(to, x); }
static inline Bytes low_nibbles(Bytes x) { return _mm512_and_si512(x, _mm512_set1_epi8(15)); }
static inline Bytes high_nibbles(Bytes x) { return low_nibbles(_mm512_srli_epi16(x, 4)); }

// x | (bits, moved right by SHIFT, & MASK)
template <int SHIFT, int MASK>
static inline Bytes with_bits(Bytes x, Bytes bits) {
  if constexpr (SHIFT > 0) bits = _mm512_srli_epi16(bits, SHIFT);
  else bits = _mm512_slli_epi16(bits, -SHIFT);
  return _mm512_ternarylogic_epi32(x, bits, _mm512_set1_epi8(MASK), 0xf8);
}

// Activations as bf16 lie in fours of 0, 2, 1, 3: the codes of a lane are then pairs of words, 128 + code in bf16 once its
// sign and exponent are set.
using Half = uint16_t;
static inline int place(int column) { return (column & ~3) | (0xd8 >> 2 * (column & 3) & 3); }
using Codes = const Bytes (&)[8];

template <class X, int BITS>
constexpr float surplus() {
  return std::is_same_v<X, Half> && BITS < 8 ? 128.0f : 0.0f;
}

static inline __m512i four(const void* x) {
  int32_t bytes;
  memcpy(&bytes, x, 4);
  return _mm512_set1_epi32(bytes);
}

template <int BITS, int COUNT, int FIRST>
static inline Floats dot(Codes codes, const int8_t* x) {
  const Bytes* q = codes + FIRST;
  __m512i sum = _mm512_setzero_si512();
  for (int i = 0; i < COUNT; ++i) sum = _mm512_dpbusd_epi32(sum, q[i], four(x + 4 * i));
  return {_mm512_cvtepi32_ps(sum)};
}

// Codes as pairs of bf16, once for all tokens.
template <int BITS>
struct Pairs {
  __m512bh v[16];

  explicit Pairs(const Bytes (&q)[8]) {
    const __m512i bytes = _mm512_set1_epi16(0xff), magic = _mm512_set1_epi16(0x4300), low = _mm512_set1_epi32(0xff);
    for (int i = 0; i < 8; ++i) {
      if constexpr (BITS == 8) {  // exactly, as whole numbers below 256 are in bf16
        __m512i each[4];
        for (int c = 0; c < 4; ++c)
          each[c] = (__m512i)_mm512_cvtepi32_ps(_mm512_and_si512(_mm512_srli_epi32(q[i], 8 * c), low));
        v[2 * i] = (__m512bh)_mm512_or_si512(_mm512_srli_epi32(each[0], 16), each[2]);
        v[2 * i + 1] = (__m512bh)_mm512_or_si512(_mm512_srli_epi32(each[1], 16), each[3]);
      } else {
        v[2 * i] = (__m512bh)_mm512_ternarylogic_epi32(q[i], bytes, magic, 0xea);  // & bytes | magic
        v[2 * i + 1] = (__m512bh)_mm512_or_si512(_mm512_srli_epi16(q[i], 8), magic);
      }
    }
  }
};

template <int BITS, int COUNT, int FIRST>
static inline Floats dot(const Pairs<BITS>& q, const Half* x) {
  __m512 even = _mm512_setzero_ps(), odd = even;
  for (int i = 0; i < COUNT; ++i) {
    even = _mm512_dpbf16_ps(even, q.v[2 * (FIRST + i)], (__m512bh)four(x + 4 * i));
    odd = _mm512_dpbf16_ps(odd, q.v[2 * (FIRST + i) + 1], (__m512bh)four(x + 4 * i + 2));
  }
  return {_mm512_add_ps(even, odd)};
}

template <int BITS, int COUNT, int FIRST>
static inline Floats dot(Codes codes, const float* x) {
  const Bytes* q = codes + FIRST;
  __m512 sum[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
  const __m512i low = _mm512_set1_epi32(255);
  for (int i = 0; i < COUNT; ++i)
    each<4>([&](auto c) {
      const __m512 code = _mm512_cvtepi32_ps(_mm512_and_si512(_mm512_srli_epi32(q[i], 8 * c), low));
      sum[c & 1] = _mm512_fmadd_ps(code, _mm512_set1_ps(x[4 * i + c]), sum[c & 1]);
    });
  return {_mm512_add_ps(sum[0], sum[1])};
}

// What tokens packed as X are multiplied by.
template <class X, int BITS>
using Ready = std::conditional_t<std::is_same_v<X, Half>, Pairs<BITS>, Codes>;

}  // namespace blocks
