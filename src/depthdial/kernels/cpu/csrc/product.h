// Products of weights, as they lie in memory, with the tokens of a panel: sums of 16 rows by 16 tokens, handed on while
// they are in the nearest cache. The order of a token's sums does not depend on the tokens beside it.
#pragma once
#include <algorithm>

#include "panel.h"

namespace amx {

// What a thread needs to widen int8 rows: 32 rows, [32, cols].
struct Scratch {
  uint16_t* wide;
  alignas(64) float sums[4][LANES * TILE];
};

// 16 int8 rows as bf16, exactly; bf16 rows as they are.
static inline const uint16_t* rows_of(const Mat& w, int row, uint16_t* wide) {
  if (w.kind != INT8) return (const uint16_t*)w.data + (size_t)row * w.cols;
  const int8_t* from = (const int8_t*)w.data + (size_t)row * w.cols;
  for (int i = 0; i < TILE * w.cols; i += 32) {
    const __m512 a = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)(from + i))));
    const __m512 b = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)(from + i + 16))));
    _mm512_storeu_si512(wide + i, (__m512i)_mm512_cvtne2ps_pbh(b, a));
  }
  return wide;
}

// Row r of the sums of rows row.. of w, with scale and bias.
static inline __m512 exact(const Mat& w, int row, const float* sums, int r) {
  __m512 sum = _mm512_load_ps(sums + r * LANES);
  if (w.scale) sum = _mm512_mul_ps(sum, _mm512_set1_ps(w.scale[row + r]));
  if (w.bias) sum = _mm512_add_ps(sum, _mm512_set1_ps(w.bias[row + r]));
  return sum;
}

static inline __m512 value(const Mat& w, int row, const float* sums, int r) { return rounded(exact(w, row, sums, r)); }

// Two tiles of rows by one or two groups. a, b: 16 rows of `cols` values each, which stay in the nearest cache while the
// groups stream by (a third faster than without that hint); next: what is read after them, of which a share is asked for
// early.
template <int GROUPS>
static inline void tiles(const uint16_t* a, const uint16_t* b, int cols, const Panel& x, int group, const char* next,
                         int lines, Scratch& own) {
  const size_t line = (size_t)cols * 2;
  const uint32_t *first = x.at(group, 0), *second = x.at(group + GROUPS - 1, 0);
  _tile_zero(0);
  _tile_zero(1);
  if constexpr (GROUPS == 2) {
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int k = 0; k < cols; k += STEP) {
    for (int i = 0; i < lines; ++i, next += LINE) _mm_prefetch(next, _MM_HINT_T1);
    _tile_loadd(4, a + k, line);
    _tile_stream_loadd(6, first + (size_t)k * LANES / 2, LINE);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(5, b + k, line);
    _tile_dpbf16ps(1, 5, 6);
    if constexpr (GROUPS == 2) {
      _tile_stream_loadd(7, second + (size_t)k * LANES / 2, LINE);
      _tile_dpbf16ps(2, 4, 7);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, own.sums[0], LINE);
  _tile_stored(1, own.sums[1], LINE);
  if constexpr (GROUPS == 2) {
    _tile_stored(2, own.sums[2], LINE);
    _tile_stored(3, own.sums[3], LINE);
  }
}

// For all groups: done(group, sums of the rows a, sums of the rows b). ahead: bytes of weights that follow a, and b.
template <class Done>
static inline void two_tiles(const uint16_t* a, const uint16_t* b, int cols, const Panel& x, int groups, const char* next,
                             size_t ahead, Scratch& own, Done done) {
  const int steps = cols / STEP * ((groups + 1) / 2);
  const int lines = next ? (int)((ahead / LINE + steps - 1) / steps) : 0;
  for (int g = 0; g < groups; g += 2) {
    const char* from = next + (size_t)lines * LINE * (cols / STEP) * (g / 2);
    if (g + 1 < groups) tiles<2>(a, b, cols, x, g, from, lines, own);
    else tiles<1>(a, b, cols, x, g, from, lines, own);
    done(g, own.sums[0], own.sums[1]);
    if (g + 1 < groups) done(g + 1, own.sums[2], own.sums[3]);
  }
}

// Rows begin..end of w, at least 16: done(row, group, sums [16][16]). Where they are not whole tiles some come twice.
template <class Done>
static inline void product(const Mat& w, const Panel& x, int groups, int begin, int end, Scratch& own, Done done) {
  const size_t size = w.kind == INT8 ? 1 : 2, tile = size * TILE * w.cols;
  for (int row = begin; row < end; row += 2 * TILE) {
    const int first = std::min(row, end - TILE), second = std::min(row + TILE, end - TILE);
    const uint16_t* a = rows_of(w, first, own.wide);
    const uint16_t* b = rows_of(w, second, own.wide + TILE * w.cols);
    const bool more = row + 4 * TILE <= end;
    const char* next = more ? (const char*)w.data + size * (row + 2 * TILE) * w.cols : nullptr;
    two_tiles(a, b, w.cols, x, groups, next, 2 * tile, own, [&](int group, const float* one, const float* two) {
      done(first, group, one);
      if (second != first) done(second, group, two);
    });
  }
}

// Into a panel, from column `at` on.
static inline void product(const Mat& w, const Panel& x, int groups, const Panel& to, int at, Scratch& own) {
  product(w, x, groups, 0, w.rows, own, [&](int row, int group, const float* sums) {
    for (int r = 0; r < TILE; r += 2)
      store(to.at(group, at + row + r), paired(value(w, row, sums, r), value(w, row, sums, r + 1)));
  });
}

// act(gate x) * (up x) into a panel. Both have whole tiles of rows.
static inline void opened(const Mat& gate, const Mat& up, const Panel& x, int groups, bool gelu, const Panel& to,
                          Scratch& own) {
  const size_t size = gate.kind == INT8 ? 1 : 2, tile = size * TILE * gate.cols;
  for (int row = 0; row < gate.rows; row += TILE) {
    const uint16_t* a = rows_of(gate, row, own.wide);
    const uint16_t* b = rows_of(up, row, own.wide + TILE * up.cols);
    const char* next = row + 2 * TILE <= gate.rows ? (const char*)up.data + tile * (row / TILE + 1) : nullptr;
    two_tiles(a, b, gate.cols, x, groups, next, tile, own, [&](int group, const float* opens, const float* ups) {
      for (int r = 0; r < TILE; r += 2) {
        __m512 both[2];
        for (int i = 0; i < 2; ++i)
          both[i] = _mm512_mul_ps(rounded(activated(value(gate, row, opens, r + i), gelu)), value(up, row, ups, r + i));
        store(to.at(group, row + r), paired(both[0], both[1]));
      }
    });
  }
}

}  // namespace amx
