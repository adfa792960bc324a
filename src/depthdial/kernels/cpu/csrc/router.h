// What a router makes of a token's code, fp32.
#pragma once
#include <utility>

#include "abi.h"
#include "elementwise.h"

static inline void activate(float* code, int n, int kind) {
  for (int i = 0; i < n; ++i) {
    const float x = code[i];
    if (kind == OP_TANH) code[i] = tanh_of(x);
    else if (kind == OP_SILU) code[i] = x * sigmoid(x);
    else if (kind == OP_RELU) code[i] = x > 0 || x != x ? x : 0;
    else if (kind == OP_GELU) code[i] = 0.5f * x * (1.0f + std::erf(x * 0.70710678f));
    else code[i] = sigmoid(x);
  }
}

// The number that the operations leave of a code, which is overwritten, as is `other`, as much memory.
static inline float number_of(float* code, float* other, const RouterSpec& router) {
  for (int i = 0; i < router.count; ++i) {
    const OpSpec& op = router.ops[i];
    if (op.kind == OP_DENSE) {
      for (int row = 0; row < op.rows; ++row)
        other[row] = dot_f32(code, op.weight + (size_t)row * op.cols, op.cols) + (op.bias ? op.bias[row] : 0.0f);
      std::swap(code, other);
    } else if (op.kind == OP_NORM) {
      const float inverse = 1.0f / std::sqrt(dot_f32(code, code, op.cols) / op.cols + op.eps);
      for (int j = 0; j < op.cols; ++j) code[j] *= inverse * op.weight[j];
    } else {
      activate(code, op.cols, op.kind);
    }
  }
  return code[0];
}

// Top probability and its gap to the second, of `count` logits.
static inline void readout(const float* logits, int count, float* code) {
  float top = -INFINITY, second = -INFINITY, broken = 0;
  for (int i = 0; i < count; ++i) {
    const float x = logits[i];
    second = x > top ? top : x > second ? x : second;
    top = x > top ? x : top;
    broken += x * 0.0f;
  }
  float sum = broken;
#pragma omp simd reduction(+ : sum)
  for (int i = 0; i < count; ++i) sum += fast_exp(logits[i] - top);
  code[0] = 1.0f / sum;
  code[1] = code[0] - fast_exp(second - top) / sum;
}
