// Rows of a linear map for a few tokens: each weight is read once, whatever the number of tokens.
#pragma once
#include "abi.h"
#include "elementwise.h"
#if defined(DEPTHDIAL_AVX512)
#include "isa_avx512.h"
#elif defined(DEPTHDIAL_AVX2)
#include "isa_avx2.h"
#else
#include "isa_portable.h"
#endif
#if defined(DEPTHDIAL_AMX)
#include "isa_amx.h"
#endif

constexpr int BLOCK = 64;  // activations that share a scale under int8 weights

static inline int padded(int cols) { return (cols + BLOCK - 1) / BLOCK * BLOCK; }

static inline int value_bytes(const Mat& w) { return w.kind == INT8 ? 1 : w.kind == BF16 ? 2 : 4; }

static inline int64_t row_bytes(const Mat& w) { return (int64_t)w.cols * value_bytes(w) + (w.kind == INT8 ? 4 : 0); }

// The input of a linear map in the form its kernel reads; memory for max_tokens rows of the widest input.
struct Packed {
  float* wide;         // [tokens, pitch]
  isa::Half* half;     // [tokens, pitch]
  int8_t* whole;       // [tokens, pitch]
  float* scale;        // [tokens, pitch / BLOCK]
  uint16_t* tiles;     // AMX: four bytes of a token beside those of the next, and `wide` holds scale [pitch / BLOCK, 16]
  int tokens, pitch;
  bool exact;  // see PassSpec
};

static inline void quantise(const float* x, int cols, int8_t* out, float* scale) {
  for (int k = 0; k < padded(cols); k += BLOCK) {
    const int count = cols - k < BLOCK ? cols - k : BLOCK;
    float most = 0;
#pragma omp simd reduction(max : most)
    for (int j = 0; j < count; ++j) {
      const float size = std::fabs(x[k + j]);
      most = size > most ? size : most;
    }
    scale[k / BLOCK] = most / 127.0f;
    const float inverse = most > 0 ? 1.0f / (most / 127.0f) : 0.0f;
    for (int j = 0; j < count; ++j) {
      const float value = (x[k + j] * inverse + 12582912.0f) - 12582912.0f;  // to the nearest, half to even
      out[k + j] = (int8_t)(int)value;
    }
    for (int j = count; j < BLOCK; ++j) out[k + j] = 0;
  }
}

// x: fp32 [.., cols], of which `rows` lists the tokens taken (null: the first `tokens`).
static inline void pack(Packed& p, const float* x, const int* rows, int tokens, int cols, int kind) {
  p.tokens = tokens;
  p.pitch = padded(cols);
  for (int m = 0; m < tokens; ++m) {
    const float* from = x + (size_t)(rows ? rows[m] : m) * cols;
    if (kind == INT8) {
      quantise(from, cols, p.whole + (size_t)m * p.pitch, p.scale + (size_t)m * (p.pitch / BLOCK));
      continue;
    }
#if defined(DEPTHDIAL_AVX512)
    if (kind == BF16) {
      uint16_t* to = p.half + (size_t)m * p.pitch;
      for (int k = 0; k < cols; ++k) to[k] = to_bf16(from[k]);
      for (int k = cols; k < p.pitch; ++k) to[k] = 0;
      continue;
    }
#endif
    float* to = p.wide + (size_t)m * p.pitch;
    memcpy(to, from, sizeof(float) * cols);
    for (int k = cols; k < p.pitch; ++k) to[k] = 0;
  }
#if defined(DEPTHDIAL_AMX)
  if (p.exact || !amx::worth(tokens, kind)) return;
  if (kind == BF16) {
    amx::tile_tokens(p.half, tokens, p.pitch * 2, p.tiles);
    return;
  }
  amx::tile_tokens(p.whole, tokens, p.pitch, p.tiles);
  const int blocks = p.pitch / BLOCK;
  for (int b = 0; b < blocks; ++b)
    for (int m = 0; m < amx::TILE; ++m) p.wide[b * amx::TILE + m] = m < tokens ? p.scale[m * blocks + b] : 0.0f;
#endif
}

template <int R, int M>
static inline void dot_block(const Mat& w, int row, size_t ahead, const Packed& x, int token, float* out) {
  const size_t at = (size_t)row * w.cols, from = (size_t)token * x.pitch;
  if (w.kind == INT8) {
    const size_t blocks = x.pitch / BLOCK;
    isa::dot<R, M>((const int8_t*)w.data + at, w.cols, ahead, x.whole + from, x.pitch, x.scale + token * blocks, blocks,
                   out);
    for (int m = 0; m < M; ++m)
      for (int r = 0; r < R; ++r) out[m * R + r] *= w.scale[row + r];
  } else if (w.kind == BF16) {
#if defined(DEPTHDIAL_AVX512)
    isa::dot<R, M>((const uint16_t*)w.data + at, w.cols, ahead, x.half + from, x.pitch, out);
#else
    isa::dot<R, M>((const uint16_t*)w.data + at, w.cols, ahead, x.wide + from, x.pitch, out);
#endif
  } else {
    isa::dot<R, M>((const float*)w.data + at, w.cols, ahead, x.wide + from, x.pitch, out);
  }
}

template <int R, int M>
static inline void store_block(const Mat& w, int row, size_t ahead, const Packed& x, int token, float* out, int ld,
                               bool bf16) {
  float sums[R * M];
  dot_block<R, M>(w, row, token ? 0 : ahead, x, token, sums);
  for (int m = 0; m < M; ++m)
    for (int r = 0; r < R; ++r)
      out[(size_t)(token + m) * ld + row + r] = rounded(sums[m * R + r] + (w.bias ? w.bias[row + r] : 0.0f), bf16);
}

template <int R>
static inline void all_tokens(const Mat& w, int row, size_t ahead, const Packed& x, float* out, int ld, bool bf16) {
  int token = 0;
  for (; token + isa::TOKENS <= x.tokens; token += isa::TOKENS)
    store_block<R, isa::TOKENS>(w, row, ahead, x, token, out, ld, bf16);
  if constexpr (isa::TOKENS > 2) {
    for (; token + 2 <= x.tokens; token += 2) store_block<R, 2>(w, row, ahead, x, token, out, ld, bf16);
  }
  for (; token < x.tokens; ++token) store_block<R, 1>(w, row, ahead, x, token, out, ld, bf16);
}

// Rows fetched early: about 8 KB, in whole blocks of four.
static inline int rows_ahead(const Mat& w) {
  const int blocks = (int)(8192 / (4 * row_bytes(w)));
  return 4 * (blocks < 1 ? 1 : blocks);
}

// Asks for the first rows that a thread will read of w next, while it waits for the others.
static inline void fetch(const Mat& w, int begin) {
  const char* from = (const char*)w.data + (size_t)begin * w.cols * value_bytes(w);
  for (int i = 0; i < 8192; i += 64) __builtin_prefetch(from + i);
}

// out [tokens, ld], columns begin..end: rows begin..end of w with the packed tokens. Returns the bytes of weights read.
static int64_t linear_rows(const Mat& w, const Packed& x, int begin, int end, float* out, int ld, bool bf16) {
  const int64_t bytes = (int64_t)(end - begin) * row_bytes(w);
  int row = begin;
#if defined(DEPTHDIAL_AMX)
  if (!x.exact && amx::worth(x.tokens, w.kind) && w.cols * value_bytes(w) % amx::LINE == 0) {
    if (w.kind == BF16) row = amx::rows_bf16(w, x.tiles, x.tokens, begin, end, out, ld, bf16);
    else row = amx::rows_int8(w, x.tiles, x.wide, x.tokens, begin, end, out, ld, bf16);
  }
#endif
  const int early = rows_ahead(w);
  for (; row + 4 <= end; row += 4)
    all_tokens<4>(w, row, row + early < end ? (size_t)early * w.cols : 0, x, out, ld, bf16);
  for (; row < end; ++row) all_tokens<1>(w, row, 0, x, out, ld, bf16);
  return bytes;
}
