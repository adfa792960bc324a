// Dot products of R rows of weights with M tokens: AVX-512 with BF16 and VNNI.
#pragma once
#include <immintrin.h>

#include <cstddef>
#include <cstdint>

namespace isa {

using Half = uint16_t;  // how activations are packed for bf16 weights
constexpr int TOKENS = 4;
constexpr int AHEAD = 512;  // bytes of a row fetched early

static inline __m128 reduce4(__m512 a, __m512 b, __m512 c, __m512 d) {
  const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
  const __m512d lo = _mm512_unpacklo_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd));
  const __m512d hi = _mm512_unpackhi_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd));
  const __m512 all = _mm512_add_ps(_mm512_castpd_ps(lo), _mm512_castpd_ps(hi));
  const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));
  return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}

// The sums of a row come out the same whatever rows are beside it.
template <int R, int M>
static inline void reduce(const __m512 (&sum)[R][M], float* out) {
  const __m512 zero = _mm512_setzero_ps();
  if constexpr (R == 4 && M == 4) {  // as four times `reduce4`, in fewer steps
    __m512 fours[4];
    for (int m = 0; m < 4; ++m) {
      const __m512 a = _mm512_add_ps(_mm512_unpacklo_ps(sum[0][m], sum[1][m]), _mm512_unpackhi_ps(sum[0][m], sum[1][m]));
      const __m512 b = _mm512_add_ps(_mm512_unpacklo_ps(sum[2][m], sum[3][m]), _mm512_unpackhi_ps(sum[2][m], sum[3][m]));
      const __m512d lo = _mm512_unpacklo_pd(_mm512_castps_pd(a), _mm512_castps_pd(b));
      const __m512d hi = _mm512_unpackhi_pd(_mm512_castps_pd(a), _mm512_castps_pd(b));
      fours[m] = _mm512_add_ps(_mm512_castpd_ps(lo), _mm512_castpd_ps(hi));
    }
    __m512 halves[2];
    for (int i = 0; i < 2; ++i)
      halves[i] = _mm512_add_ps(_mm512_shuffle_f32x4(fours[2 * i], fours[2 * i + 1], 0x44),
                                _mm512_shuffle_f32x4(fours[2 * i], fours[2 * i + 1], 0xee));
    _mm512_storeu_ps(out, _mm512_add_ps(_mm512_shuffle_f32x4(halves[0], halves[1], 0x88),
                                        _mm512_shuffle_f32x4(halves[0], halves[1], 0xdd)));
    return;
  }
  for (int m = 0; m < M; ++m) {
    if constexpr (R == 1) out[m] = _mm_cvtss_f32(reduce4(sum[0][m], zero, zero, zero));
    else
      for (int r = 0; r < R; r += 4)
        _mm_storeu_ps(out + m * R + r, reduce4(sum[r][m], sum[r + 1][m], sum[r + 2][m], sum[r + 3][m]));
  }
}

// out [M][R]. w: rows of `cols` values, `line` values apart; x: rows `pitch` apart, zero beyond `cols`.
template <int R, int M>
static inline void dot(const uint16_t* w, int cols, size_t line, const Half* x, size_t pitch, float* out) {
  __m512 sum[R][M];
  for (int r = 0; r < R; ++r)
    for (int m = 0; m < M; ++m) sum[r][m] = _mm512_setzero_ps();
  const auto step = [&](int k, auto load) {
    __m512bh row[R];
    for (int r = 0; r < R; ++r) {
      __builtin_prefetch((const char*)(w + r * line + k) + AHEAD);
      row[r] = (__m512bh)load(w + r * line + k);
    }
    for (int m = 0; m < M; ++m) {
      const __m512bh token = (__m512bh)_mm512_loadu_si512(x + m * pitch + k);
      for (int r = 0; r < R; ++r) sum[r][m] = _mm512_dpbf16_ps(sum[r][m], row[r], token);
    }
  };
  int k = 0;
  for (; k + 32 <= cols; k += 32) step(k, [](const uint16_t* p) { return _mm512_loadu_si512(p); });
  if (k < cols) {
    const __mmask32 rest = (1u << (cols - k)) - 1;
    step(k, [rest](const uint16_t* p) { return _mm512_maskz_loadu_epi16(rest, p); });
  }
  reduce<R, M>(sum, out);
}

template <int R, int M>
static inline void dot(const float* w, int cols, size_t line, const float* x, size_t pitch, float* out) {
  __m512 sum[R][M];
  for (int r = 0; r < R; ++r)
    for (int m = 0; m < M; ++m) sum[r][m] = _mm512_setzero_ps();
  const auto step = [&](int k, auto load) {
    __m512 row[R];
    for (int r = 0; r < R; ++r) {
      __builtin_prefetch((const char*)(w + r * line + k) + AHEAD);
      row[r] = load(w + r * line + k);
    }
    for (int m = 0; m < M; ++m) {
      const __m512 token = _mm512_loadu_ps(x + m * pitch + k);
      for (int r = 0; r < R; ++r) sum[r][m] = _mm512_fmadd_ps(row[r], token, sum[r][m]);
    }
  };
  int k = 0;
  for (; k + 16 <= cols; k += 16) step(k, [](const float* p) { return _mm512_loadu_ps(p); });
  if (k < cols) {
    const __mmask16 rest = (__mmask16)((1u << (cols - k)) - 1);
    step(k, [rest](const float* p) { return _mm512_maskz_loadu_ps(rest, p); });
  }
  reduce<R, M>(sum, out);
}

#if defined(DEPTHDIAL_AMX)

// The sums of R vectors of whole numbers, in the first R lanes.
template <int R>
static inline __m512i totals(const __m512i (&v)[R]) {
  if constexpr (R == 1) {
    return _mm512_castsi128_si512(_mm_cvtsi32_si128(_mm512_reduce_add_epi32(v[0])));
  } else {
    __m512i fours[R / 4];
    for (int r = 0; r < R; r += 4) {
      const __m512i a = _mm512_add_epi32(_mm512_unpacklo_epi32(v[r], v[r + 1]), _mm512_unpackhi_epi32(v[r], v[r + 1]));
      const __m512i b =
          _mm512_add_epi32(_mm512_unpacklo_epi32(v[r + 2], v[r + 3]), _mm512_unpackhi_epi32(v[r + 2], v[r + 3]));
      fours[r / 4] = _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
    }
    const __m512i one = fours[0], two = fours[R / 4 - 1];
    const __m512i half = _mm512_add_epi32(_mm512_shuffle_i32x4(one, two, 0x44), _mm512_shuffle_i32x4(one, two, 0xee));
    return _mm512_add_epi32(_mm512_shuffle_i32x4(half, half, 0x88), _mm512_shuffle_i32x4(half, half, 0xdd));
  }
}

#endif

// x: int8 in blocks of 64 whose scales are xs, `blocks` a token. VNNI multiplies unsigned with signed, so 128 is added to
// x (a flipped sign bit) and 128 * sum(w) taken off. Beside AMX blocks are summed as its tiles sum them.
template <int R, int M>
static inline void dot(const int8_t* w, int cols, size_t line, const int8_t* x, size_t pitch, const float* xs,
                       size_t blocks, float* out) {
#if defined(DEPTHDIAL_AMX)
  __m512 sum[M];
  for (int m = 0; m < M; ++m) sum[m] = _mm512_setzero_ps();
#else
  __m512 sum[R][M];
  for (int r = 0; r < R; ++r)
    for (int m = 0; m < M; ++m) sum[r][m] = _mm512_setzero_ps();
#endif
  const __m512i shift = _mm512_set1_epi8((char)0x80);
  for (int k = 0, block = 0; k < cols; k += 64, ++block) {
    const __mmask64 valid = cols - k >= 64 ? ~0ull : (1ull << (cols - k)) - 1;
    __m512i row[R], start[R];
    for (int r = 0; r < R; ++r) {
      __builtin_prefetch((const char*)(w + r * line + k) + AHEAD);
      row[r] = _mm512_maskz_loadu_epi8(valid, w + r * line + k);
      start[r] = _mm512_sub_epi32(_mm512_setzero_si512(), _mm512_dpbusd_epi32(_mm512_setzero_si512(), shift, row[r]));
    }
    for (int m = 0; m < M; ++m) {
      const __m512i token = _mm512_xor_si512(_mm512_loadu_si512(x + m * pitch + k), shift);
      const __m512 scale = _mm512_set1_ps(xs[m * blocks + block]);
#if defined(DEPTHDIAL_AMX)
      __m512i whole[R];
      for (int r = 0; r < R; ++r) whole[r] = _mm512_dpbusd_epi32(start[r], token, row[r]);
      sum[m] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(totals<R>(whole)), scale, sum[m]);
#else
      for (int r = 0; r < R; ++r)
        sum[r][m] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_dpbusd_epi32(start[r], token, row[r])), scale, sum[r][m]);
#endif
    }
  }
#if defined(DEPTHDIAL_AMX)
  for (int m = 0; m < M; ++m) _mm512_mask_storeu_ps(out + m * R, (__mmask16)((1u << R) - 1), sum[m]);
#else
  reduce<R, M>(sum, out);
#endif
}

}  // namespace isa
