// Rotary positions, the paged KV cache, and decode attention over it.
#pragma once
#include "abi.h"
#include "elementwise.h"
#if defined(DEPTHDIAL_AVX512)
#include "isa_avx512.h"
#endif

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

// Pairs x[i], x[i + pairs], in a loop that vectorises; between: are products rounded, too?
template <bool BF16, bool BETWEEN>
static inline void rotate(float* __restrict x, const float* __restrict c, const float* __restrict s, int pairs) {
  float* __restrict y = x + pairs;
  for (int i = 0; i < pairs; ++i) {
    const float a = x[i], b = y[i];
    x[i] = rounded(rounded(a * c[i], BETWEEN) - rounded(b * s[i], BETWEEN), BF16);
    y[i] = rounded(rounded(b * c[i], BETWEEN) + rounded(a * s[i], BETWEEN), BF16);
  }
}

// Pairs x[2 i], x[2 i + 1].
static inline void rotate_neighbours(float* x, const float* c, const float* s, int pairs, bool bf16, bool between) {
  for (int i = 0; i < pairs; ++i, x += 2) {
    const float a = x[0], b = x[1];
    x[0] = rounded(rounded(a * c[i], between) - rounded(b * s[i], between), bf16);
    x[1] = rounded(rounded(b * c[i], between) + rounded(a * s[i], between), bf16);
  }
}

// One head, normed where the model does so head by head, and rotated in place. exact: rounded once, at the end.
static inline void norm_and_rotate(float* x, const LayerSpec& l, const NormSpec& norm, const float* cos_sin, bool bf16,
                                   bool exact) {
  const bool norms = norm.weight && !l.wide;
  if (norms && !l.late) rms_norm(x, l.head_dim, norm, bf16, x);
  const float *c = cos_sin, *s = cos_sin + l.head_dim / 2;
  if (l.neighbours)
    rotate_neighbours(x, c, s, l.turned, bf16, bf16 && !exact);
  else if (!bf16)
    rotate<false, false>(x, c, s, l.turned);
  else if (exact)
    rotate<true, false>(x, c, s, l.turned);
  else
    rotate<true, true>(x, c, s, l.turned);
  if (norms && l.late) rms_norm(x, l.head_dim, norm, bf16, x);
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

#if defined(DEPTHDIAL_AVX512)
// `over_page` for bf16 and common sizes: products of pairs of bf16, four slots at a time, and each value widened once for up
// to four heads. q is rounded to bf16 already.
template <int HD, int H, class Weights>
static inline void over_page_bf16(const uint16_t* k, const uint16_t* v, int slots, float scale, const float* q, float* out,
                                  Weights weights, int first) {
  constexpr int PAIRS = HD / 32, WIDE = HD / 16;
  float scores[H][PAGE + 4], shrink[H];
  for (int h = 0; h < H; ++h) {
    __m512bh query[PAIRS];
    for (int c = 0; c < PAIRS; ++c) {
      const float* from = q + h * HD + c * 32;
      query[c] = _mm512_cvtne2ps_pbh(_mm512_loadu_ps(from + 16), _mm512_loadu_ps(from));
    }
    for (int slot = 0; slot < slots; slot += 4) {
      __m512 sum[4];
      for (int s = 0; s < 4; ++s) {
        sum[s] = _mm512_setzero_ps();
        if (slot + s >= slots) continue;
        const uint16_t* key = k + (size_t)(slot + s) * HD;
        for (int c = 0; c < PAIRS; ++c)
          sum[s] = _mm512_dpbf16_ps(sum[s], (__m512bh)_mm512_loadu_si512(key + c * 32), query[c]);
      }
      const __m128 four = isa::reduce4(sum[0], sum[1], sum[2], sum[3]);
      _mm_storeu_ps(scores[h] + slot, _mm_mul_ps(four, _mm_set1_ps(scale)));
    }
    shrink[h] = weights(first + h, scores[h]);
  }
  __m512 sum[H][WIDE];
  for (int h = 0; h < H; ++h)
    for (int c = 0; c < WIDE; ++c)
      sum[h][c] = _mm512_mul_ps(_mm512_loadu_ps(out + h * HD + c * 16), _mm512_set1_ps(shrink[h]));
  for (int slot = 0; slot < slots; ++slot) {
    const uint16_t* value = v + (size_t)slot * HD;
    for (int c = 0; c < WIDE; ++c) {
      const __m512i half = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)(value + c * 16)));
      const __m512 wide = _mm512_castsi512_ps(_mm512_slli_epi32(half, 16));
      for (int h = 0; h < H; ++h) sum[h][c] = _mm512_fmadd_ps(_mm512_set1_ps(scores[h][slot]), wide, sum[h][c]);
    }
  }
  for (int h = 0; h < H; ++h)
    for (int c = 0; c < WIDE; ++c) _mm512_storeu_ps(out + h * HD + c * 16, sum[h][c]);
}

#endif

// One page under some heads that share it, scores [heads][PAGE] in between; weights(h) turns scores into weights and says
// by how much what came before shrinks. q, out: [heads, n].
template <class T, int HD, class Weights>
static inline void over_page(const T* k, const T* v, int slots, int n, float scale, const float* q, int heads, float* out,
                             float* scratch, Weights weights) {
#if defined(DEPTHDIAL_AVX512)
  if constexpr (sizeof(T) == 2 && HD > 0) {
    constexpr int MOST = HD == 64 ? 4 : 2;  // as many heads as there are registers for
    for (int h = 0; h < heads;) {
      const int left = heads - h < MOST ? heads - h : MOST;
      const auto some = left == 4   ? over_page_bf16<HD, 4, Weights>
                        : left == 3 ? over_page_bf16<HD, 3, Weights>
                        : left == 2 ? over_page_bf16<HD, 2, Weights>
                                    : over_page_bf16<HD, 1, Weights>;
      some((const uint16_t*)k, (const uint16_t*)v, slots, scale, q + (size_t)h * HD, out + (size_t)h * HD, weights, h);
      h += left;
    }
    return;
  }
#endif
  const float* keys = widen_rows(k, slots * n, scratch);
  const float* values = widen_rows(v, slots * n, scratch + PAGE * n);
  for (int h = 0; h < heads; ++h) {
    float scores[PAGE];
    score_page<HD>(q + (size_t)h * n, keys, slots, n, scale, scores);
    weigh_page<HD>(scores, values, slots, n, weights(h, scores), out + (size_t)h * n);
  }
}

// Heads first..last of one token, which share one KV head, over positions start..position of its sequence: softmax in one
// sweep of the pages, with a running maximum. held: where entries are (null: everywhere); what is not there is not read.
// q, out: [heads, head_dim]. scratch: 2 * PAGE * head_dim floats. Returns how many entries it read.
template <class T, int HD>
static int attend(const Cache<T>& cache, const LayerSpec& layer, const int32_t* table, const uint8_t* held, int position,
                  const float* q, int first, int last, float* out, float* scratch, bool bf16) {
  const int n = layer.head_dim, head = first / (layer.heads / layer.kv_heads);
  const int start = layer.window && position + 1 > layer.window ? position + 1 - layer.window : 0;
  float most[64], total[64];  // 64 heads of one group at most: checked in Python
  for (int h = first; h < last; ++h) {
    most[h - first] = -INFINITY;
    total[h - first] = 0;
    for (int i = 0; i < n; ++i) out[(size_t)h * n + i] = 0;
  }
  int read = 0;
  const auto over = [&](int page, int from, int slots) {
    const size_t at = cache.at(table[page], head, from);
    read += slots;
    const auto weights = [&](int h, float* scores) {
      float top = most[h];
      if (layer.softcap > 0) cap(scores, slots, layer.softcap);
      for (int s = 0; s < slots; ++s) top = scores[s] > top ? scores[s] : top;
      const float shrink = fast_exp(most[h] - top);
      float sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int s = 0; s < slots; ++s) {
        scores[s] = fast_exp(scores[s] - top);
        sum += scores[s];
      }
      total[h] = total[h] * shrink + sum;
      most[h] = top;
      return shrink;
    };
    over_page<T, HD>(cache.k + at, cache.v + at, slots, n, layer.scale, q + (size_t)first * n, last - first,
                     out + (size_t)first * n, scratch, weights);
  };
  for (int page = start / PAGE; page <= position / PAGE; ++page) {
    if (table[page] < 0) continue;
    const int from = page == start / PAGE ? start % PAGE : 0, to = page == position / PAGE ? position % PAGE + 1 : PAGE;
    if (!held) {
      over(page, from, to - from);
      continue;
    }
    const uint8_t* here = held + (size_t)table[page] * PAGE;
    for (int slot = from, begin; slot < to;) {
      for (; slot < to && !here[slot];) ++slot;
      for (begin = slot; slot < to && here[slot];) ++slot;
      if (slot > begin) over(page, begin, slot - begin);
    }
  }
  for (int h = first; h < last; ++h)
    for (int i = 0; i < n; ++i) out[(size_t)h * n + i] = rounded(out[(size_t)h * n + i] / total[h - first], bf16);
  return read;
}
