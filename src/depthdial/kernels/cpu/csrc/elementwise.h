// What happens to vectors between the matrices. Loops are plain, for the compiler to vectorise. Activations are kept as
// fp32; in a bf16 model each holds a value that bf16 has, rounded where Hugging Face rounds.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#include "abi.h"

__attribute__((always_inline)) static inline float round_bf16(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  bits = (bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff0000u;
  memcpy(&x, &bits, 4);
  return x;
}

static inline float rounded(float x, bool bf16) { return bf16 ? round_bf16(x) : x; }

static inline uint16_t to_bf16(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  return (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

static inline float from_bf16(uint16_t half) {
  const uint32_t bits = (uint32_t)half << 16;
  float x;
  memcpy(&x, &bits, 4);
  return x;
}

// x itself, out of the compiler's sight: it must not join the product that x is and a sum in some kernels and not in others.
static inline float apart(float x) {
#if defined(__x86_64__)
  asm("" : "+x"(x));
#elif defined(__aarch64__)
  asm("" : "+w"(x));
#endif
  return x;
}

// For functions whose loops must vectorise, whatever else the compiler has inlined where they stand.
#define DEPTHDIAL_INLINE __attribute__((always_inline)) static inline

// exp within 2e-7 relative, branchless so that loops of it vectorise (the constants are those of Cephes).
DEPTHDIAL_INLINE float fast_exp(float x) {
  x = x > 88.0f ? 88.0f : x;
  x = x < -87.0f ? -87.0f : x;
  const float shifted = x * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: rounds to a whole number
  const float n = shifted - 12582912.0f;
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  uint32_t bits;  // of `shifted`, which ends in n; whatever NaN leaves there is multiplied by NaN
  memcpy(&bits, &shifted, 4);
  bits = (bits - 0x4b400000u + 127u) << 23;
  float power;
  memcpy(&power, &bits, 4);
  return p * power;
}

DEPTHDIAL_INLINE float sigmoid(float x) { return 1.0f / (1.0f + fast_exp(-x)); }

DEPTHDIAL_INLINE float tanh_of(float x) { return 1.0f - 2.0f / (fast_exp(2.0f * x) + 1.0f); }

DEPTHDIAL_INLINE float gelu_tanh(float x) {
  return 0.5f * x * (1.0f + tanh_of(0.79788456f * (x + 0.044715f * x * x * x)));
}

static inline float dot_f32(const float* a, const float* b, int n) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int i = 0; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

static inline void rms_norm(const float* x, int n, const NormSpec& norm, bool bf16, float* out) {
  const float inverse = 1.0f / std::sqrt(dot_f32(x, x, n) / n + norm.eps);
  if (!bf16)
    for (int i = 0; i < n; ++i) out[i] = x[i] * inverse * norm.weight[i];
  else if (norm.once)
    for (int i = 0; i < n; ++i) out[i] = round_bf16(x[i] * inverse * norm.weight[i]);
  else
    for (int i = 0; i < n; ++i) out[i] = round_bf16(round_bf16(x[i] * inverse) * norm.weight[i]);
}

// c * tanh(x / c), out of line: few models have it, and it must not grow the loops of the others.
__attribute__((noinline)) static void cap(float* x, int n, float c) {
  for (int i = 0; i < n; ++i) x[i] = tanh_of(x[i] / c) * c;
}

// `gated` for an MLP without a gate, or with an activation that few have.
__attribute__((noinline)) static void gated_otherwise(float* gate, const float* up, int n, int act, bool bf16) {
  for (int i = 0; i < n; ++i) {
    const float x = gate[i], positive = x > 0 ? x : x * 0.0f;  // NaN stays
    const float on = act == ACT_RELU2 ? positive * positive : act == ACT_GELU ? gelu_tanh(x) : x * sigmoid(x);
    gate[i] = up ? rounded(rounded(on, bf16) * up[i], bf16) : rounded(on, bf16);
  }
}

// act(gate) * up, in place of gate; up null: act(gate).
__attribute__((noinline)) static void gated(float* gate, const float* up, int n, int act, bool bf16) {
  if (act == ACT_RELU2 || !up)
    gated_otherwise(gate, up, n, act, bf16);
  else if (act == ACT_GELU)
    for (int i = 0; i < n; ++i) gate[i] = rounded(rounded(gelu_tanh(gate[i]), bf16) * up[i], bf16);
  else if (bf16)
    for (int i = 0; i < n; ++i) gate[i] = round_bf16(round_bf16(gate[i] * sigmoid(gate[i])) * up[i]);
  else
    for (int i = 0; i < n; ++i) gate[i] = gate[i] * sigmoid(gate[i]) * up[i];
}

// From a to b, as far as the weight says, which is rounded.
static inline float between(float a, float b, float weight, bool bf16) {
  const float w = rounded(weight, bf16);
  return rounded(w < 0.5f ? a + w * (b - a) : b - (b - a) * (1.0f - w), bf16);
}

// x += weight * update, the product rounded.
static inline void add(float* x, const float* update, int n, float weight, bool bf16) {
  if (!bf16)
    for (int i = 0; i < n; ++i) x[i] += weight * update[i];
  else if (weight == 1.0f)
    for (int i = 0; i < n; ++i) x[i] = round_bf16(x[i] + update[i]);
  else
    for (int i = 0; i < n; ++i) x[i] = round_bf16(x[i] + round_bf16(weight * update[i]));
}

// A head's logits as the model has them.
static inline void shape_logits(float* logits, int n, const ModelSpec& model) {
  if (model.logit_scale != 1.0f)
    for (int i = 0; i < n; ++i) logits[i] *= model.logit_scale;
  if (model.softcap > 0) cap(logits, n, model.softcap);
}
