// Rotary positions, the paged KV cache, and decode attention over it.
#pragma once
#include "abi.h"
#include "elementwise.h"

constexpr int PAGE = 64;  // tokens in a page

static inline float load(const float* p) { return *p; }
static inline float load(const uint16_t* p) { return from_bf16(*p); }
static inline void store(float* p, float x) { *p = x; }
static inline void store(uint16_t* p, float x) { *p = to_bf16(x); }

// cos and sin of one token, [half] each.
static inline void angles(const float* inv_freq, float scaling, int position, int half, bool bf16, float* cos_sin) {
  for (int i = 0; i < half; ++i) {
    const float angle = (float)position * inv_freq[i];
    cos_sin[i] = rounded(std::cos(angle) * scaling, bf16);
    cos_sin[half + i] = rounded(std::sin(angle) * scaling, bf16);
  }
}

// One head, [2 * half], normed where the model does and rotated in place: its two halves are paired.
static inline void norm_and_rotate(float* x, const NormSpec& norm, const float* cos_sin, int half, bool bf16) {
  if (norm.weight) rms_norm(x, 2 * half, norm, bf16, x);
  const float *c = cos_sin, *s = cos_sin + half;
  for (int i = 0; i < half; ++i) {
    const float a = x[i], b = x[half + i];
    x[i] = rounded(rounded(a * c[i], bf16) - rounded(b * s[i], bf16), bf16);
    x[half + i] = rounded(rounded(b * c[i], bf16) + rounded(a * s[i], bf16), bf16);
  }
}

// One layer's cache.
template <class T>
struct Cache {
  T* k;  // [pages, kv_heads, PAGE, head_dim]
  T* v;
  int kv_heads, head_dim;

  size_t at(int page, int head, int slot) const { return (((size_t)page * kv_heads + head) * PAGE + slot) * head_dim; }

  void write(int page, int head, int slot, const float* key, const float* value) const {
    const size_t place = at(page, head, slot);
    for (int i = 0; i < head_dim; ++i) store(k + place + i, key[i]);
    for (int i = 0; i < head_dim; ++i) store(v + place + i, value[i]);
  }
};

static inline const float* widen_rows(const float* rows, int, float*) { return rows; }

static inline const float* widen_rows(const uint16_t* rows, int count, float* scratch) {
  for (int i = 0; i < count; ++i) scratch[i] = from_bf16(rows[i]);
  return scratch;
}

// scores [slots] of one head; HD > 0 fixes head_dim for the compiler.
template <int HD>
static inline void score_page(const float* q, const float* k, int slots, int head_dim, float scale, float* scores) {
  const int n = HD ? HD : head_dim;
  for (int slot = 0; slot < slots; ++slot) scores[slot] = dot_f32(q, k + (size_t)slot * n, n) * scale;
}

template <int HD>
static inline void weigh_page(const float* weights, const float* v, int slots, int head_dim, float shrink, float* out) {
  const int n = HD ? HD : head_dim;
  if constexpr (HD > 0) {
    float sum[HD];
    for (int i = 0; i < HD; ++i) sum[i] = out[i] * shrink;
    for (int slot = 0; slot < slots; ++slot)
      for (int i = 0; i < HD; ++i) sum[i] += weights[slot] * v[(size_t)slot * HD + i];
    for (int i = 0; i < HD; ++i) out[i] = sum[i];
  } else {
    for (int i = 0; i < n; ++i) out[i] *= shrink;
    for (int slot = 0; slot < slots; ++slot)
      for (int i = 0; i < n; ++i) out[i] += weights[slot] * v[(size_t)slot * n + i];
  }
}

// Heads first..last of one token, which share one KV head, over positions start..position of its sequence: softmax in one
// sweep of the pages, with a running maximum. q, out: [heads, head_dim]. scratch: 2 * PAGE * head_dim floats.
template <class T, int HD>
static void attend(const Cache<T>& cache, const LayerSpec& layer, const int32_t* table, int position, const float* q,
                   int first, int last, float* out, float* scratch, bool bf16) {
  const int n = layer.head_dim, head = first / (layer.heads / layer.kv_heads);
  const int start = layer.window && position + 1 > layer.window ? position + 1 - layer.window : 0;
  float most[64], total[64];  // 64 heads of one group at most: checked in Python
  for (int h = first; h < last; ++h) {
    most[h - first] = -INFINITY;
    total[h - first] = 0;
    for (int i = 0; i < n; ++i) out[(size_t)h * n + i] = 0;
  }
  for (int page = start / PAGE; page <= position / PAGE; ++page) {
    const int from = page == start / PAGE ? start % PAGE : 0;
    const int slots = (page == position / PAGE ? position % PAGE + 1 : PAGE) - from;
    const size_t at = cache.at(table[page], head, from);
    const float* keys = widen_rows(cache.k + at, slots * n, scratch);
    const float* values = widen_rows(cache.v + at, slots * n, scratch + PAGE * n);
    for (int h = first; h < last; ++h) {
      float scores[PAGE];
      score_page<HD>(q + (size_t)h * n, keys, slots, n, layer.scale, scores);
      float top = most[h - first];
      for (int s = 0; s < slots; ++s) top = scores[s] > top ? scores[s] : top;
      const float shrink = fast_exp(most[h - first] - top);
      float sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int s = 0; s < slots; ++s) {
        scores[s] = fast_exp(scores[s] - top);
        sum += scores[s];
      }
      total[h - first] = total[h - first] * shrink + sum;
      most[h - first] = top;
      weigh_page<HD>(scores, values, slots, n, shrink, out + (size_t)h * n);
    }
  }
  for (int h = first; h < last; ++h)
    for (int i = 0; i < n; ++i) out[(size_t)h * n + i] = rounded(out[(size_t)h * n + i] / total[h - first], bf16);
}
