// Weights in blocks, for `linear.h`: a unit of its own, so that the compiler treats the loops of other formats as before.
#include "blocks.h"

#include "linear.h"

// Activations in int8 have a scale for each block.
void pack_for_blocks(Packed& p, const float* x, const int* rows, int cols) {
  constexpr int COLS = blocks::COLS, HALF = COLS / 2;
  for (int m = 0; m < p.tokens; ++m) {
    const float* from = x + (size_t)(rows ? rows[m] : m) * cols;
    const size_t at = (size_t)m * p.pitch;
    float *sums = p.sums + at / HALF, *scale = p.scale + at / COLS;
    if (p.near_kind == INT8) {
      int8_t* whole = p.whole + at;
      quantise<COLS>(from, cols, whole, scale);
      for (int b = 0; b < cols / COLS; ++b, whole += COLS) {
        int first = 0, second = 0;
        for (int j = 0; j < HALF; ++j) first += whole[j], second += whole[HALF + j];
        sums[2 * b] = (first + second) * scale[b];
        sums[2 * b + 1] = first * scale[b];
      }
      continue;
    }
    for (int k = 0; k < cols; k += COLS) {
      float first = 0, second = 0;
      for (int j = 0; j < HALF; ++j) first += from[k + j], second += from[k + HALF + j];
      sums[k / HALF] = first + second;
      sums[k / HALF + 1] = first;
    }
    if (p.near_kind == FP32) memcpy(p.wide + at, from, sizeof(float) * cols);
#if defined(DEPTHDIAL_AVX512)
    else
      for (int k = 0; k < cols; ++k) p.half[at + blocks::place(k)] = to_bf16(from[k]);
#endif
  }
}

int64_t row_bytes_in_blocks(const Mat& w) {
  const int count = w.cols / blocks::COLS;
  return ((int64_t)count * blocks::code_bytes(w.kind) + blocks::scale_bytes(w.kind, count)) / blocks::ROWS;
}

template <int KIND>
static void rows_of_kind(const Mat& w, const Packed& x, int begin, int end, float* out, int ld, bool bf16) {
  if (x.near_kind == INT8) {
    blocks::rows<KIND>(w, blocks::Input<int8_t>{x.whole, x.sums, x.scale, x.tokens, x.pitch}, begin, end, out, ld, bf16);
#if defined(DEPTHDIAL_AVX512)
  } else if (x.near_kind == BF16) {
    blocks::rows<KIND>(w, blocks::Input<uint16_t>{x.half, x.sums, nullptr, x.tokens, x.pitch}, begin, end, out, ld, bf16);
#endif
  } else {
    blocks::rows<KIND>(w, blocks::Input<float>{x.wide, x.sums, nullptr, x.tokens, x.pitch}, begin, end, out, ld, bf16);
  }
}

// work(kind), the kind known to the compiler.
template <class Work>
static inline void by_kind(int kind, Work work) {
  blocks::each<Q6_K - Q4_0 + 1>([&](auto i) {
    if (kind == Q4_0 + i) work(std::integral_constant<int, Q4_0 + i>());
  });
}

void rows_in_blocks(const Mat& w, const Packed& x, int begin, int end, float* out, int ld, bool bf16) {
  by_kind(w.kind, [&](auto kind) { rows_of_kind<kind>(w, x, begin, end, out, ld, bf16); });
}

void entries_in_blocks(const Mat& w, int64_t row, float scale, bool bf16, float* out) {
  by_kind(w.kind, [&](auto kind) { blocks::row_of<kind>(w, (int)row, out); });
  for (int i = 0; i < w.cols; ++i) {
    out[i] = rounded(out[i], bf16);
    if (scale != 1.0f) out[i] = rounded(out[i] * scale, bf16);
  }
}
