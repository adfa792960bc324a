// Panels: tokens by sixteen, one to a lane, their columns two by two as pairs of bf16, [groups][cols / 2][16]. AMX wants
// its second operand like this and gives its result like this, and norms, rotation and softmax need no sum across lanes.
#pragma once
#include "elementwise.h"
#include "isa_amx.h"
#include "router.h"

namespace amx {

constexpr int LANES = 16;
constexpr int STEP = 32;  // columns of one tile

struct Panel {
  uint32_t* data = nullptr;
  int cols = 0;  // a multiple of STEP

  uint32_t* at(int group, int row) const { return data + ((size_t)group * cols + row) * (LANES / 2); }
};

static inline __m512 low(__m512i pair) { return _mm512_castsi512_ps(_mm512_slli_epi32(pair, 16)); }

static inline __m512 high(__m512i pair) {
  return _mm512_castsi512_ps(_mm512_and_si512(pair, _mm512_set1_epi32((int)0xffff0000)));
}

static inline __m512 rounded(__m512 x) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(x)), 16));
}

// Two rows of values, each rounded to bf16, side by side.
static inline __m512i paired(__m512 first, __m512 second) {
  alignas(64) static constexpr uint16_t ORDER[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                     8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  return _mm512_permutexvar_epi16(_mm512_load_si512(ORDER), (__m512i)_mm512_cvtne2ps_pbh(second, first));
}

static inline __m512i load(const uint32_t* p) { return _mm512_loadu_si512(p); }
static inline void store(uint32_t* p, __m512i v) { _mm512_storeu_si512(p, v); }

// 2^x within 3e-6 relative, from -126 to 126; below that 2^-126. Of NaN it is NaN: the second of two is what remains of it.
static inline __m512 exp2_of(__m512 x) {
  x = _mm512_max_ps(_mm512_set1_ps(-126.0f), x);
  const __m512 whole = _mm512_roundscale_ps(x, 0), f = _mm512_sub_ps(x, whole);
  __m512 p = _mm512_set1_ps(0.00133335581f);
  for (const float c : {0.00961812911f, 0.0555041087f, 0.240226507f, 0.693147181f, 1.0f})
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(c));
  return _mm512_scalef_ps(p, whole);
}

static inline __m512 sigmoid_of(__m512 x) {
  const __m512 turned = _mm512_min_ps(_mm512_set1_ps(125.0f), _mm512_mul_ps(x, _mm512_set1_ps(-1.44269504f)));
  const __m512 sum = _mm512_add_ps(_mm512_set1_ps(1.0f), exp2_of(turned)), guess = _mm512_rcp14_ps(sum);
  return _mm512_mul_ps(guess, _mm512_fnmadd_ps(sum, guess, _mm512_set1_ps(2.0f)));
}

static inline __m512 tanh_lanes(__m512 x) {
  return _mm512_fmsub_ps(_mm512_set1_ps(2.0f), sigmoid_of(_mm512_add_ps(x, x)), _mm512_set1_ps(1.0f));
}

static inline __m512 activated(__m512 x, bool gelu) {
  if (!gelu) return _mm512_mul_ps(x, sigmoid_of(x));
  const __m512 cube = _mm512_mul_ps(_mm512_mul_ps(x, x), x);
  const __m512 inner = _mm512_fmadd_ps(_mm512_set1_ps(0.044715f), cube, x);
  return _mm512_mul_ps(x, sigmoid_of(_mm512_mul_ps(inner, _mm512_set1_ps(2.0f * 0.79788456f))));
}

// Rows of bf16 [.., cols], those that `rows` lists, into a panel; lanes without a token are 0.
static inline void gather(const Panel& to, const uint16_t* from, int cols, const int* rows, int count) {
  for (int first = 0; first < count; first += LANES)
    for (int c = 0; c < cols; c += STEP) {
      __m512i v[16];
      for (int m = 0; m < LANES; ++m)
        v[m] = first + m < count ? _mm512_loadu_si512(from + (size_t)rows[first + m] * cols + c) : _mm512_setzero_si512();
      transpose(v);
      for (int i = 0; i < 16; ++i) store(to.at(first / LANES, c + 2 * i), v[i]);
    }
}

// `cols` columns of a panel from column `begin` on, token by token: write(token, column, 32 values of bf16).
template <class Write>
static inline void scatter(const Panel& from, int begin, int cols, int count, Write write) {
  for (int first = 0; first < count; first += LANES)
    for (int c = 0; c < cols; c += STEP) {
      __m512i v[16];
      for (int i = 0; i < 16; ++i) v[i] = load(from.at(first / LANES, begin + c + 2 * i));
      transpose(v);
      for (int m = 0; m < LANES && first + m < count; ++m) write(first + m, c, v[m]);
    }
}

// RMSNorm of columns begin..begin + cols; `from` and `to` may be the same.
static inline void norm(const Panel& from, const Panel& to, int groups, int begin, int cols, const NormSpec& by) {
  for (int g = 0; g < groups; ++g) {
    __m512 even = _mm512_setzero_ps(), odd = even;
    for (int c = begin; c < begin + cols; c += 2) {
      const __m512i pair = load(from.at(g, c));
      even = _mm512_fmadd_ps(low(pair), low(pair), even);
      odd = _mm512_fmadd_ps(high(pair), high(pair), odd);
    }
    const __m512 mean = _mm512_div_ps(_mm512_add_ps(even, odd), _mm512_set1_ps((float)cols));
    const __m512 by_root = _mm512_div_ps(_mm512_set1_ps(1.0f), _mm512_sqrt_ps(_mm512_add_ps(mean, _mm512_set1_ps(by.eps))));
    for (int c = begin; c < begin + cols; c += 2) {
      const __m512i pair = load(from.at(g, c));
      __m512 a = _mm512_mul_ps(low(pair), by_root), b = _mm512_mul_ps(high(pair), by_root);
      if (!by.once) {
        a = rounded(a);
        b = rounded(b);
      }
      a = _mm512_mul_ps(a, _mm512_set1_ps(by.weight[c - begin]));
      b = _mm512_mul_ps(b, _mm512_set1_ps(by.weight[c - begin + 1]));
      store(to.at(g, c), paired(a, b));
    }
  }
}

// One head of one group turned by its lanes' places: turns, [2 * half][16], are cos and sin. Its two halves are pairs.
static inline void rotate(const Panel& x, int group, int begin, int half, const float* turns) {
  for (int c = 0; c < half; c += 2) {
    const __m512i first = load(x.at(group, begin + c)), second = load(x.at(group, begin + half + c));
    __m512 up[2], down[2];
    for (int odd = 0; odd < 2; ++odd) {
      const __m512 a = odd ? high(first) : low(first), b = odd ? high(second) : low(second);
      const __m512 cos = _mm512_loadu_ps(turns + (c + odd) * LANES), sin = _mm512_loadu_ps(turns + (half + c + odd) * LANES);
      up[odd] = _mm512_sub_ps(rounded(_mm512_mul_ps(a, cos)), rounded(_mm512_mul_ps(b, sin)));
      down[odd] = _mm512_add_ps(rounded(_mm512_mul_ps(b, cos)), rounded(_mm512_mul_ps(a, sin)));
    }
    store(x.at(group, begin + c), paired(up[0], up[1]));
    store(x.at(group, begin + half + c), paired(down[0], down[1]));
  }
}

// x += weight * update for two rows of a group, all rounded as Hugging Face does. update: the two rows, rounded.
static inline void join(uint32_t* x, __m512 first, __m512 second, __m512 weight) {
  const __m512i pair = load(x);
  first = _mm512_add_ps(low(pair), rounded(_mm512_mul_ps(weight, first)));
  second = _mm512_add_ps(high(pair), rounded(_mm512_mul_ps(weight, second)));
  store(x, paired(first, second));
}

// What a router's operations leave of a group's codes, fp32 [width][16], which are overwritten, as is `other`: `number_of`,
// lane by lane.
static inline __m512 numbers_of(float* codes, float* other, const RouterSpec& router) {
  for (int i = 0; i < router.count; ++i) {
    const OpSpec& op = router.ops[i];
    if (op.kind == OP_DENSE) {
      for (int row = 0; row < op.rows; ++row) {
        __m512 sum = _mm512_set1_ps(op.bias ? op.bias[row] : 0.0f);
        for (int c = 0; c < op.cols; ++c)
          sum = _mm512_fmadd_ps(_mm512_loadu_ps(codes + c * LANES), _mm512_set1_ps(op.weight[(size_t)row * op.cols + c]), sum);
        _mm512_storeu_ps(other + row * LANES, sum);
      }
      std::swap(codes, other);
    } else if (op.kind == OP_NORM) {
      __m512 squares = _mm512_setzero_ps();
      for (int c = 0; c < op.cols; ++c) {
        const __m512 code = _mm512_loadu_ps(codes + c * LANES);
        squares = _mm512_fmadd_ps(code, code, squares);
      }
      const __m512 mean = _mm512_div_ps(squares, _mm512_set1_ps((float)op.cols));
      const __m512 root = _mm512_sqrt_ps(_mm512_add_ps(mean, _mm512_set1_ps(op.eps)));
      for (int c = 0; c < op.cols; ++c) {
        const __m512 scaled = _mm512_mul_ps(_mm512_loadu_ps(codes + c * LANES), _mm512_set1_ps(op.weight[c]));
        _mm512_storeu_ps(codes + c * LANES, _mm512_div_ps(scaled, root));
      }
    } else if (op.kind == OP_TANH) {
      for (int c = 0; c < op.cols; ++c) _mm512_storeu_ps(codes + c * LANES, tanh_lanes(_mm512_loadu_ps(codes + c * LANES)));
    } else {
      activate(codes, op.cols * LANES, op.kind);
    }
  }
  return _mm512_loadu_ps(codes);
}

// The best and second best of the logits that a group's tokens have had so far, and the sum of their exponentials.
struct Readout {
  __m512 top = _mm512_set1_ps(-INFINITY), second = top, sum = _mm512_setzero_ps();

  static __m512 power(__m512 x) { return exp2_of(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f))); }

  void take(const __m512* logits, int count) {
    __m512 best = top;
    for (int r = 0; r < count; ++r) {
      second = _mm512_max_ps(second, _mm512_min_ps(best, logits[r]));
      best = _mm512_max_ps(best, logits[r]);
    }
    sum = _mm512_mul_ps(sum, power(_mm512_sub_ps(top, best)));
    for (int r = 0; r < count; ++r) sum = _mm512_add_ps(sum, power(_mm512_sub_ps(logits[r], best)));
    top = best;
  }

  void code(float* to) const {
    const __m512 one = _mm512_div_ps(_mm512_set1_ps(1.0f), sum);
    _mm512_storeu_ps(to, one);
    _mm512_storeu_ps(to + LANES, _mm512_sub_ps(one, _mm512_mul_ps(power(_mm512_sub_ps(second, top)), one)));
  }
};

}  // namespace amx
