// Rows in the blocks of GGUF, as `kernels/blocks.py` lays them out: panels of 16 rows, a lane of a vector for each, so that
// a product needs no sum across lanes. Weight = scale * code + least; codes are unsigned whole numbers. Two planes hold a
// matrix, panel by panel: codes (`data`), and what the blocks of 32 columns have of scales (`scale`). A token's sums go
// block by block, whatever rows and tokens are beside it.
#pragma once
#include "lanes.h"

namespace blocks {

constexpr int ROWS = 16, COLS = 32;
constexpr int SUPER = 8;           // blocks of a K kind that share halves of their scales
constexpr int AHEAD = 4096;        // bytes of codes fetched early

constexpr bool grouped(int kind) { return kind >= Q4_K; }
constexpr int bits(int kind) {
  return kind == Q8_0 ? 8 : kind == Q6_K ? 6 : kind == Q5_0 || kind == Q5_1 || kind == Q5_K ? 5 : 4;
}
constexpr int code_bytes(int kind) { return ROWS * COLS * bits(kind) / 8; }
constexpr int least_of(int kind) { return kind == Q8_0 ? 128 : kind == Q6_K ? 32 : kind == Q5_0 ? 16 : kind == Q4_0 ? 8 : 0; }

// Bytes of scales of `count` blocks of a panel.
constexpr size_t scale_bytes(int kind, int count) {
  return grouped(kind) ? (size_t)count / SUPER * (4 + 2 * SUPER) * ROWS : (size_t)count * (kind == Q4_1 || kind == Q5_1 ? 4 : 2) * ROWS;
}

// Of one block, or of its halves where each has a scale of its own (Q6_K).
struct Scales {
  Floats scale[2], least[2];
};

template <int KIND>
static inline Scales scales_of(const uint8_t* plane, int block) {
  Scales s;
  if constexpr (grouped(KIND)) {
    const uint8_t *super = plane + scale_bytes(KIND, block / SUPER * SUPER), *own = super + 4 * ROWS + block % SUPER * 2 * ROWS;
    const Floats by = from_fp16(super);
    if constexpr (KIND == Q6_K) {
      for (int half = 0; half < 2; ++half) s.scale[half] = by * from_int8(own + half * ROWS);
    } else {
      s.scale[0] = by * from_uint8(own);
      s.least[0] = from_fp16(super + 2 * ROWS) * from_uint8(own + ROWS) * all(-1.0f);
    }
  } else {
    const uint8_t* own = plane + scale_bytes(KIND, block);
    s.scale[0] = from_fp16(own);
    if constexpr (KIND == Q4_1 || KIND == Q5_1) s.least[0] = from_fp16(own + 2 * ROWS);
  }
  if constexpr (least_of(KIND) != 0)
    for (int half = 0; half < (KIND == Q6_K ? 2 : 1); ++half) s.least[half] = s.scale[half] * all(-(float)least_of(KIND));
  return s;
}

// Codes of columns 4 i .. 4 i + 3, a lane for each row.
template <int KIND>
static inline void codes_of(const uint8_t* from, Bytes (&q)[8]) {
  if constexpr (KIND == Q8_0) {
    for (int i = 0; i < 8; ++i) q[i] = load(from + 64 * i);
    return;
  }
  for (int i = 0; i < 4; ++i) {
    const Bytes two = load(from + 64 * i);
    q[i] = low_nibbles(two);
    q[i + 4] = high_nibbles(two);
  }
  if constexpr (bits(KIND) == 5) {
    const Bytes high = load(from + 256);
    each<8>([&](auto i) { q[i] = with_bits<i - 4, 0x10>(q[i], high); });
  }
  if constexpr (bits(KIND) == 6)
    each<2>([&](auto half) {
      const Bytes high = load(from + 256 + 64 * half);
      each<4>([&](auto i) { q[4 * half + i] = with_bits<2 * i - 4, 0x30>(q[4 * half + i], high); });
    });
}

static inline void early(const uint8_t* codes, int bytes) {
  for (int i = 0; i < bytes; i += 64) __builtin_prefetch(codes + AHEAD + i);
}

// Sums of a panel's 16 rows with M tokens from `token` on, out[m * ld + row]. X: how activations are packed.
template <int KIND, class X, int M>
static inline void panel(const uint8_t* codes, const uint8_t* scales, int count, const Input<X>& x, int token, Floats (&sum)[M]) {
  constexpr int parts = KIND == Q6_K ? 2 : 1;
  for (int m = 0; m < M; ++m) sum[m] = all(0.0f);
  for (int block = 0; block < count; ++block, codes += code_bytes(KIND)) {
    if (token == 0) early(codes, code_bytes(KIND));
    Bytes q[8];
    codes_of<KIND>(codes, q);
    Scales s = scales_of<KIND>(scales, block);
    for (int half = 0; half < parts; ++half) s.least[half] = fma(s.scale[half], all(-Input<X>::template extra<bits(KIND)>), s.least[half]);
    const Ready<X, bits(KIND)> ready(q);
    for (int m = 0; m < M; ++m) {
      const X* values = x.values + (size_t)(token + m) * x.pitch + block * COLS;
      const float* sums = x.sums + (size_t)(token + m) * x.pitch / (COLS / 2) + 2 * block;
      each<parts>([&](auto half) __attribute__((always_inline)) {
        const Floats product = dot<bits(KIND), 8 / parts, 4 * half>(ready, values + COLS / 2 * half);
        sum[m] = fma(product, s.scale[half] * x.scale(token + m, block), sum[m]);
        const float total = parts == 1 ? sums[0] : half ? sums[0] - sums[1] : sums[1];
        sum[m] = fma(s.least[half], all(total), sum[m]);
      });
    }
  }
}

template <int KIND, class X, int M>
static inline void some(const Mat& w, int row, int end, const Input<X>& x, int token, float* out, int ld, bool bf16) {
  const int count = w.cols / COLS, number = row / ROWS;
  Floats sum[M];
  panel<KIND, X, M>((const uint8_t*)w.data + (size_t)number * count * code_bytes(KIND),
                    (const uint8_t*)w.scale + number * scale_bytes(KIND, count), count, x, token, sum);
  for (int m = 0; m < M; ++m) {
    alignas(64) float values[ROWS];
    store(values, sum[m]);
    float* to = out + (size_t)(token + m) * ld;
    const int rows = end - row < ROWS ? end - row : ROWS;
    for (int r = 0; r < rows; ++r) to[r] = rounded(w.bias ? values[r] + w.bias[row + r] : values[r], bf16);
  }
}

template <int KIND, class X>
static void rows(const Mat& w, const Input<X>& x, int begin, int end, float* out, int ld, bool bf16) {
  for (int row = begin; row < end; row += ROWS, out += ROWS) {
    int token = 0;
    for (; token + 8 <= x.tokens; token += 8) some<KIND, X, 8>(w, row, end, x, token, out, ld, bf16);
    switch (x.tokens - token) {  // codes are unpacked once for all of them
      case 7: some<KIND, X, 5>(w, row, end, x, token, out, ld, bf16); token += 5; [[fallthrough]];
      case 2: some<KIND, X, 2>(w, row, end, x, token, out, ld, bf16); break;
      case 6: some<KIND, X, 4>(w, row, end, x, token, out, ld, bf16); token += 4;
              some<KIND, X, 2>(w, row, end, x, token, out, ld, bf16); break;
      case 5: some<KIND, X, 5>(w, row, end, x, token, out, ld, bf16); break;
      case 4: some<KIND, X, 4>(w, row, end, x, token, out, ld, bf16); break;
      case 3: some<KIND, X, 2>(w, row, end, x, token, out, ld, bf16); token += 2; [[fallthrough]];
      case 1: some<KIND, X, 1>(w, row, end, x, token, out, ld, bf16); break;
    }
  }
}

// Row `row` of a matrix that is looked up.
template <int KIND>
static void row_of(const Mat& w, int row, float* out) {
  const int count = w.cols / COLS, panel = row / ROWS, lane = row % ROWS;
  const uint8_t* codes = (const uint8_t*)w.data + (size_t)panel * count * code_bytes(KIND);
  const uint8_t* scales = (const uint8_t*)w.scale + panel * scale_bytes(KIND, count);
  for (int block = 0; block < count; ++block, codes += code_bytes(KIND)) {
    Bytes q[8];
    codes_of<KIND>(codes, q);
    const Scales s = scales_of<KIND>(scales, block);
    alignas(64) uint8_t bytes[64];
    alignas(64) float scale[ROWS], least[ROWS];
    for (int i = 0; i < 8; ++i) {
      if (i == 0 || (KIND == Q6_K && i == 4)) {
        store(scale, s.scale[i / 4]);
        store(least, s.least[i / 4]);
      }
      store(bytes, q[i]);
      for (int c = 0; c < 4; ++c) out[block * COLS + 4 * i + c] = apart(scale[lane] * bytes[4 * lane + c]) + least[lane];
    }
  }
}

}  // namespace blocks
