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

static inline bool in_blocks(int kind) { return kind > INT8; }

int64_t row_bytes_in_blocks(const Mat& w);

// Maps of the same form take the same packed tokens.
static inline int form(int kind) { return in_blocks(kind) ? Q4_0 : kind; }

static inline int64_t row_bytes(const Mat& w) {
  return in_blocks(w.kind) ? row_bytes_in_blocks(w) : (int64_t)w.cols * value_bytes(w) + (w.kind == INT8 ? 4 : 0);
}

// Column i of one row of a matrix that is looked up.
static inline float entry(const Mat& w, int64_t row, int i, bool bf16) {
  const size_t at = (size_t)row * w.cols + i;
  if (w.kind == INT8) return rounded(((const int8_t*)w.data)[at] * w.scale[row], bf16);
  return w.kind == BF16 ? from_bf16(((const uint16_t*)w.data)[at]) : ((const float*)w.data)[at];
}

// The input of a linear map in the form its kernel reads; memory for max_tokens rows of the widest input.
struct Packed {
  float* wide;         // [tokens, pitch]
  isa::Half* half;     // [tokens, pitch]
  int8_t* whole;       // [tokens, pitch]
  float* scale;        // [tokens, pitch / BLOCK]; for weights in blocks [tokens, pitch / 32]
  float* sums;         // [tokens, pitch / 32, 2], for weights in blocks
  uint16_t* tiles;     // AMX, for each 16 tokens: four bytes of one beside those of the next; `wide` has scale [pitch / BLOCK, 16]
  int tokens, pitch;
  int width;           // of a pass's tiles: its tokens, 16 at most
  void* near;          // where int8 rows are widened to, RUNS rows of `pitch`
  int near_kind;       // INT8: they are not, and activations become int8, too; else what both of them are
};

// Weights in blocks (blocks.cpp): as `pack`; rows begin..end of w, begin being the first of a panel, with the packed tokens,
// to out[token * ld + row - begin]; a token's row in a table, scaled.
void pack_for_blocks(Packed& p, const float* x, const int* rows, int cols);
void rows_in_blocks(const Mat& w, const Packed& x, int begin, int end, float* out, int ld, bool bf16);
void entries_in_blocks(const Mat& w, int64_t row, float scale, bool bf16, float* out);

template <int WIDTH>
static inline void quantise(const float* x, int cols, int8_t* out, float* scale) {
  for (int k = 0; k < cols; k += WIDTH) {
    const int count = cols - k < WIDTH ? cols - k : WIDTH;
    float most = 0, broken = 0;  // 0, or NaN: no whole number says that a value is not finite, so the scale does
#pragma omp simd reduction(max : most) reduction(+ : broken)
    for (int j = 0; j < count; ++j) {
      const float size = std::fabs(x[k + j]);
      most = size > most ? size : most;
      broken += size * 0.0f;
    }
    scale[k / WIDTH] = most / 127.0f + broken;
    const float inverse = most > 0 ? 1.0f / (most / 127.0f) : 0.0f;
    for (int j = 0; j < count; ++j) {
      const float value = x[k + j] * inverse + 12582912.0f;  // to the nearest, half to even, in the last bits
      uint32_t bits;
      memcpy(&bits, &value, 4);
      out[k + j] = (int8_t)(uint8_t)bits;
    }
    for (int j = count; j < WIDTH; ++j) out[k + j] = 0;
  }
}

// x: fp32 [.., cols], of which `rows` lists the tokens taken (null: the first `tokens`).
static inline void pack(Packed& p, const float* x, const int* rows, int tokens, int cols, int kind) {
  p.tokens = tokens;
  p.pitch = padded(cols);
  if (in_blocks(kind)) return pack_for_blocks(p, x, rows, cols);
  if (kind == INT8) kind = p.near_kind;
  for (int m = 0; m < tokens; ++m) {
    const float* from = x + (size_t)(rows ? rows[m] : m) * cols;
    if (kind == INT8) {
      quantise<BLOCK>(from, cols, p.whole + (size_t)m * p.pitch, p.scale + (size_t)m * (p.pitch / BLOCK));
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
  if (!amx::worth(tokens, kind)) return;
  for (int first = 0; first < tokens; first += amx::TILE) {
    const size_t from = (size_t)first * p.pitch;
    const int some = tokens - first < amx::TILE ? tokens - first : amx::TILE;
    if (kind == BF16) {
      amx::tile_tokens(p.half + from, some, p.width, p.pitch * 2, p.tiles + from);
      continue;
    }
    amx::tile_tokens(p.whole + from, some, p.width, p.pitch, (int8_t*)p.tiles + from);
    const int blocks = p.pitch / BLOCK;
    float* to = p.wide + (size_t)first * blocks;
    for (int b = 0; b < blocks; ++b)
      for (int m = 0; m < amx::TILE; ++m) to[b * amx::TILE + m] = m < some ? p.scale[(first + m) * blocks + b] : 0.0f;
  }
#endif
}

// Rows of a matrix as runs that lie one behind the other from `first` on, `step` rows each. They are read side by side:
// a core asks memory for one page ahead of each place it reads at, so eight places come 1.4 times as fast as one.
struct Runs {
  int first, count, step;
};

constexpr int RUNS = 8;
constexpr int MANY = 16;  // tokens that keep a core busier than memory is: rows are then taken as they lie

// `count` int8 rows, `step` apart from `row` on, as the activations are.
static inline void widen(const Mat& w, int row, int step, int count, const Packed& x) {
  for (int r = 0; r < count; ++r) {
    const int8_t* from = (const int8_t*)w.data + (size_t)(row + r * step) * w.cols;
    if (x.near_kind == FP32)
      for (int k = 0; k < w.cols; ++k) ((float*)x.near)[(size_t)r * x.pitch + k] = from[k];
    else
      for (int k = 0; k < w.cols; ++k) ((uint16_t*)x.near)[(size_t)r * x.pitch + k] = to_bf16(from[k]);
  }
}

// Row `row` and those `step` rows on, R in all, with M tokens from `token` on. near: which widened row is the first.
template <int R, int M>
static inline void dot_block(const Mat& w, int row, int step, int near, const Packed& x, int token, float* out) {
  const size_t at = (size_t)row * w.cols, from = (size_t)token * x.pitch, line = (size_t)step * w.cols;
  if (w.kind == INT8) {
    const size_t blocks = x.pitch / BLOCK, lies = (size_t)near * x.pitch;
    if (x.near_kind == INT8)
      isa::dot<R, M>((const int8_t*)w.data + at, w.cols, line, x.whole + from, x.pitch, x.scale + token * blocks, blocks, out);
    else if (x.near_kind == FP32)
      isa::dot<R, M>((const float*)x.near + lies, w.cols, x.pitch, x.wide + from, x.pitch, out);
#if defined(DEPTHDIAL_AVX512)
    else isa::dot<R, M>((const uint16_t*)x.near + lies, w.cols, x.pitch, x.half + from, x.pitch, out);
#endif
    for (int m = 0; m < M; ++m)
      for (int r = 0; r < R; ++r) out[m * R + r] = apart(out[m * R + r] * w.scale[row + r * step]);
  } else if (w.kind == BF16) {
#if defined(DEPTHDIAL_AVX512)
    isa::dot<R, M>((const uint16_t*)w.data + at, w.cols, line, x.half + from, x.pitch, out);
#else
    isa::dot<R, M>((const uint16_t*)w.data + at, w.cols, line, x.wide + from, x.pitch, out);
#endif
  } else {
    isa::dot<R, M>((const float*)w.data + at, w.cols, line, x.wide + from, x.pitch, out);
  }
}

// S rows, `step` apart, with M tokens; out[m * ld + r * out_step]. As many sums at once as there are registers for.
template <int S, int M>
static inline void store_block(const Mat& w, int row, int step, const Packed& x, int token, float* out, int out_step, int ld,
                               bool bf16) {
  constexpr int R = S > 4 && M > 1 && M == isa::TOKENS ? 4 : S;
  float sums[R * M];
  for (int first = 0; first < S; first += R) {
    dot_block<R, M>(w, row + first * step, step, first, x, token, sums);
    for (int m = 0; w.bias && m < M; ++m)
      for (int r = 0; r < R; ++r) sums[m * R + r] += w.bias[row + (first + r) * step];
    for (int i = 0; i < R * M; ++i) sums[i] = rounded(sums[i], bf16);
    for (int m = 0; m < M; ++m) {
      float* to = out + (size_t)(token + m) * ld + (size_t)first * out_step;
      if (out_step == 1) memcpy(to, sums + m * R, sizeof(float) * R);
      else
        for (int r = 0; r < R; ++r) to[(size_t)r * out_step] = sums[m * R + r];
    }
  }
}

template <int S>
static inline void all_tokens(const Mat& w, int row, int step, const Packed& x, float* out, int out_step, int ld, bool bf16) {
  int token = 0;
  if (w.kind == INT8 && x.near_kind != INT8) widen(w, row, step, S, x);
  for (; token + isa::TOKENS <= x.tokens; token += isa::TOKENS)
    store_block<S, isa::TOKENS>(w, row, step, x, token, out, out_step, ld, bf16);
  if constexpr (isa::TOKENS > 2) {
    for (; token + 2 <= x.tokens; token += 2) store_block<S, 2>(w, row, step, x, token, out, out_step, ld, bf16);
  }
  for (; token < x.tokens; ++token) store_block<S, 1>(w, row, step, x, token, out, out_step, ld, bf16);
}

static inline bool tiled(const Mat& w, const Packed& x) {
#if defined(DEPTHDIAL_AMX)
  if (w.kind == INT8 && x.near_kind != INT8) return false;
  return amx::worth(x.tokens, w.kind) && w.cols * value_bytes(w) % amx::LINE == 0;
#else
  return false;
#endif
}

// The runs of most of the rows first..end; what is left over, if they do not divide, makes runs of its own.
static inline Runs runs_of(const Mat& w, const Packed& x, int first, int end) {
  if (in_blocks(w.kind)) return {first, 1, end - first};
  const int rows = end - first, count = tiled(w, x) && rows >= 16 ? 16 : rows >= RUNS ? RUNS : 1;
  return {first, count, rows / count};
}

// Rows from..to of each run with the packed tokens: row from + j of run r goes to out[token * ld + r * out_step + j].
static inline void linear_runs(const Mat& w, const Packed& x, const Runs& runs, int from, int to, float* out, int out_step,
                               int ld, bool bf16) {
  if (in_blocks(w.kind)) return rows_in_blocks(w, x, runs.first + from, runs.first + to, out, ld, bf16);
#if defined(DEPTHDIAL_AMX)
  if (runs.count == amx::TILE) {
    const int at_once = x.tokens > amx::TILE ? 1 : to - from;  // rows stay near for all tokens
    for (int j = from; j < to; j += at_once)
      for (int first = 0; first < x.tokens; first += amx::TILE) {
        const amx::Rows rows = {runs.first + j, runs.step, at_once};
        const size_t at = (size_t)first * x.pitch;
        const int some = x.tokens - first < amx::TILE ? x.tokens - first : amx::TILE;
        float* to_here = out + (size_t)first * ld + j - from;
        if (w.kind == BF16) amx::rows_bf16(w, x.tiles + at, some, x.width, rows, to_here, out_step, ld, bf16);
        else
          amx::rows_int8(w, (const int8_t*)x.tiles + at, x.wide + at / BLOCK, some, x.width, rows, to_here, out_step, ld, bf16);
      }
    return;
  }
#endif
  const auto some = runs.count == RUNS ? all_tokens<RUNS> : all_tokens<1>;
  for (int j = from; j < to; ++j) some(w, runs.first + j, runs.step, x, out + j - from, out_step, ld, bf16);
}

// Asks for the first kilobyte of each run that a thread will read of rows begin..end next, while it waits for the others.
static inline void fetch(const Mat& w, int begin, int end) {
  const int64_t line = in_blocks(w.kind) ? row_bytes(w) : (int64_t)w.cols * value_bytes(w), step = (end - begin) / RUNS * line;
  const char* from = (const char*)w.data + begin * line;
  for (int r = 0; r < RUNS; ++r)
    for (int i = 0; i < 1024; i += 64) __builtin_prefetch(from + r * step + i);
}

// out [tokens, ld], columns begin..end: rows begin..end of w with the packed tokens. Returns the bytes of weights read.
static int64_t linear_rows(const Mat& w, const Packed& x, int begin, int end, float* out, int ld, bool bf16) {
  int row = begin;
  if (in_blocks(w.kind)) rows_in_blocks(w, x, row, end, out + row, ld, bf16), row = end;
  if (x.tokens >= MANY && !tiled(w, x))
    for (; row + RUNS <= end; row += RUNS) all_tokens<RUNS>(w, row, 1, x, out + row, 1, ld, bf16);
  while (row < end) {
    const Runs runs = runs_of(w, x, row, end);
    linear_runs(w, x, runs, 0, runs.step, out + row, runs.step, ld, bf16);
    row += runs.count * runs.step;
  }
  return (int64_t)(end - begin) * row_bytes(w);
}
