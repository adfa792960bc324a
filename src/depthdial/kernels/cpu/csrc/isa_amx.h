// Up to sixteen tokens at once: tiles of 16 rows of weights, of one run each (`Runs`), by as many tokens as a pass has.
// A token's sums do not depend on the tokens beside it.
#pragma once
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>

#include "abi.h"
#if defined(DEPTHDIAL_AMX_EMULATED)
#include "tiles_emulated.h"
#endif

namespace amx {

constexpr int TILE = 16;   // rows and tokens of a tile
constexpr int LINE = 64;   // bytes of a row of weights in one step
constexpr int AHEAD = 512;   // bytes of a row fetched early

// Sixteen rows of weights `step` apart from `first` on, then those that follow each of them, `count` in all.
struct Rows {
  int first, step, count;
};

// int8 sums are scaled after every line, which costs as much for one token as for sixteen; dot products keep up with
// memory for two, and sum in the same order.
static inline bool worth(int tokens, int kind) { return kind == BF16 || (kind == INT8 && tokens > 2); }

// The system grants tiles to a process that asks.
static inline bool granted() {
#if defined(DEPTHDIAL_AMX_EMULATED)
  return true;
#else
  return syscall(SYS_arch_prctl, 0x1023, 18) == 0;
#endif
}

// Tiles of one thread during a pass: 0 sums, 2 weights, 4 tokens; of prefill, which takes sixteen tokens at a time, all
// eight. `tokens` is how wide tiles of sums and tokens are.
struct Session {
  explicit Session(int tokens = TILE) {
    alignas(64) struct {
      uint8_t palette = 1, start = 0, reserved[14] = {};
      uint16_t bytes[16] = {};
      uint8_t rows[16] = {};
    } shape;
    for (int i = 0; i < 8; ++i) {
      shape.bytes[i] = LINE;
      shape.rows[i] = TILE;
    }
    shape.bytes[0] = shape.bytes[4] = 4 * tokens;
    _tile_loadconfig(&shape);
  }
  ~Session() { _tile_release(); }
};

static inline void transpose(__m512i (&v)[16]) {
  __m512i a[16];
  for (int i = 0; i < 16; i += 2) {
    a[i] = _mm512_unpacklo_epi32(v[i], v[i + 1]);
    a[i + 1] = _mm512_unpackhi_epi32(v[i], v[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    v[i] = _mm512_unpacklo_epi64(a[i], a[i + 2]);
    v[i + 1] = _mm512_unpackhi_epi64(a[i], a[i + 2]);
    v[i + 2] = _mm512_unpacklo_epi64(a[i + 1], a[i + 3]);
    v[i + 3] = _mm512_unpackhi_epi64(a[i + 1], a[i + 3]);
  }
  for (int i = 0; i < 4; ++i) {
    a[i] = _mm512_shuffle_i32x4(v[i], v[i + 4], 0x88);
    a[i + 4] = _mm512_shuffle_i32x4(v[i], v[i + 4], 0xdd);
    a[i + 8] = _mm512_shuffle_i32x4(v[i + 8], v[i + 12], 0x88);
    a[i + 12] = _mm512_shuffle_i32x4(v[i + 8], v[i + 12], 0xdd);
  }
  for (int i = 0; i < 4; ++i) {
    v[i] = _mm512_shuffle_i32x4(a[i], a[i + 8], 0x88);
    v[i + 4] = _mm512_shuffle_i32x4(a[i + 4], a[i + 12], 0x88);
    v[i + 8] = _mm512_shuffle_i32x4(a[i], a[i + 8], 0xdd);
    v[i + 12] = _mm512_shuffle_i32x4(a[i + 4], a[i + 12], 0xdd);
  }
}

typedef int32_t Word __attribute__((may_alias));  // four bytes of whatever type

// x: [tokens, bytes] -> [bytes / 4, width, 4], bytes being a multiple of LINE; tokens from `tokens` to `width` are left as
// they are: nobody asks for their sums.
static inline void tile_tokens(const void* x, int tokens, int width, int bytes, void* tiles) {
  if (width < TILE) {
    for (int m = 0; m < tokens; ++m) {
      const Word* from = (const Word*)((const char*)x + (size_t)m * bytes);
      Word* to = (Word*)tiles + m;
      for (int k = 0; k < bytes / 4; ++k) to[(size_t)k * width] = from[k];
    }
    return;
  }
  for (int k = 0; k < bytes; k += LINE) {
    __m512i v[16];
    for (int m = 0; m < 16; ++m)
      v[m] = m < tokens ? _mm512_loadu_si512((const char*)x + (size_t)m * bytes + k) : _mm512_setzero_si512();
    transpose(v);
    for (int i = 0; i < 16; ++i) _mm512_storeu_si512((char*)tiles + (size_t)k * TILE + i * LINE, v[i]);
  }
}

static inline __m512i places(int step) {
  return _mm512_mullo_epi32(_mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0), _mm512_set1_epi32(step));
}

// 16 rows of sums, each over 16 tokens, to out[m * ld + r * out_step]. bias: of the first row.
static inline void spread(__m512 (&sums)[16], const float* bias, int step, int tokens, float* out, int out_step, int ld,
                          bool bf16) {
  __m512i v[16];
  for (int r = 0; r < 16; ++r) v[r] = _mm512_castps_si512(sums[r]);
  transpose(v);
  const __m512i to = places(out_step);
  for (int m = 0; m < tokens; ++m) {
    __m512 value = _mm512_castsi512_ps(v[m]);
    if (bias) value = _mm512_add_ps(value, _mm512_i32gather_ps(places(step), bias, 4));
    if (bf16) {
      const __m512i wide = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(value));
      value = _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
    }
    _mm512_i32scatter_ps(out + (size_t)m * ld, to, value, 4);
  }
}

static inline void fetch_rows(const char* from, size_t line) {
  for (int r = 0; r < TILE; ++r) _mm_prefetch(from + r * line + AHEAD, _MM_HINT_T0);
}

// Sums [16, width] of 16 rows `step` apart to out[m * ld + r * out_step]. bias: of the first row.
static inline void settle(const float* sums, int width, const float* bias, int step, int tokens, float* out, int out_step,
                          int ld, bool bf16) {
  if (width == TILE) {
    __m512 rows[TILE];
    for (int r = 0; r < TILE; ++r) rows[r] = _mm512_load_ps(sums + r * TILE);
    spread(rows, bias, step, tokens, out, out_step, ld, bf16);
    return;
  }
  for (int m = 0; m < tokens; ++m)
    for (int r = 0; r < TILE; ++r)
      out[(size_t)m * ld + (size_t)r * out_step] = ::rounded(sums[r * width + m] + (bias ? bias[r * step] : 0.0f), bf16);
}

// bf16 weights; the columns fill whole lines. width: of the session's tiles.
static inline void rows_bf16(const Mat& w, const void* tiles, int tokens, int width, const Rows& rows, float* out, int out_step,
                             int ld, bool bf16) {
  alignas(64) float sums[TILE * TILE];
  const size_t bytes = (size_t)w.cols * 2, line = rows.step * bytes;
  for (int j = 0; j < rows.count; ++j) {
    const int row = rows.first + j;
    const char* first = (const char*)w.data + row * bytes;
    _tile_zero(0);
    for (size_t k = 0; k < bytes; k += LINE) {
      fetch_rows(first + k, line);
      _tile_loadd(4, (const char*)tiles + k * width, 4 * width);
      _tile_loadd(2, first + k, line);
      _tile_dpbf16ps(0, 2, 4);
    }
    _tile_stored(0, sums, 4 * width);
    settle(sums, width, w.bias ? w.bias + row : nullptr, rows.step, tokens, out + j, out_step, ld, bf16);
  }
}

// As above for int8 weights. scale: [blocks, 16], of the tokens' activations: a line is a block, so every product of two
// tiles is scaled by itself.
static inline void rows_int8(const Mat& w, const void* tiles, const float* scale, int tokens, int width, const Rows& rows,
                             float* out, int out_step, int ld, bool bf16) {
  alignas(64) int32_t stored[TILE * TILE + TILE];
  alignas(64) float scaled[TILE * TILE];
  const size_t bytes = w.cols, line = rows.step * bytes;
  const __mmask16 valid = (__mmask16)((1u << width) - 1);
  for (int j = 0; j < rows.count; ++j) {
    const int row = rows.first + j;
    const char* first = (const char*)w.data + row * bytes;
    __m512 sums[TILE];
    for (int r = 0; r < TILE; ++r) sums[r] = _mm512_setzero_ps();
    for (size_t k = 0; k < bytes; k += LINE) {
      fetch_rows(first + k, line);
      _tile_zero(0);
      _tile_loadd(4, (const char*)tiles + k * width, 4 * width);
      _tile_loadd(2, first + k, line);
      _tile_dpbssd(0, 2, 4);
      _tile_stored(0, stored, 4 * width);
      const __m512 by = _mm512_loadu_ps(scale + k / LINE * TILE);
      for (int r = 0; r < TILE; ++r)
        sums[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_loadu_si512(stored + r * width)), by, sums[r]);
    }
    for (int r = 0; r < TILE; ++r) {
      sums[r] = _mm512_mul_ps(sums[r], _mm512_set1_ps(w.scale[row + r * rows.step]));
      _mm512_mask_storeu_ps(scaled + r * width, valid, sums[r]);
    }
    settle(scaled, width, w.bias ? w.bias + row : nullptr, rows.step, tokens, out + j, out_step, ld, bf16);
  }
}

}  // namespace amx
