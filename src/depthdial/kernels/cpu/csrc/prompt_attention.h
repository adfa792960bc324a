// Attention of many tokens of one sequence over its pages, in tiles: keys by tokens. K is read as it lies; V is turned
// once for all heads and tokens of a block. Softmax is exact within a stretch of keys, with a running maximum across.
#pragma once
#include "attention.h"
#include "panel.h"

namespace amx {

constexpr int STRETCH = 8 * PAGE;  // keys at a time

// Tokens first..end of a block, all of one sequence; `positions` are those of the block, `pages` the sequence's; held: which
// entries are there, null: all that have a page.
struct Run {
  int first, end;
  const int* positions;
  const int32_t* pages;
  const uint8_t* held;

  // Keys key..key + 31, half a page, that are not there, a bit each.
  uint32_t gone(int key) const {
    const int32_t page = pages[key / PAGE];
    if (page < 0 || !held) return page < 0 ? ~0u : 0u;
    uint32_t bits = 0;
    for (int i = 0; i < STEP; ++i) bits |= (uint32_t)!held[(size_t)page * PAGE + key % PAGE + i] << i;
    return bits;
  }

  int page(int key) const { return std::max(pages[key / PAGE], 0); }
};

// A thread's memory: scores [STRETCH][16], the same as pairs of bf16, V turned, and for each group and head of a block its
// maximum, sum, shrinking factor [16] each, and weighted values [head_dim][16]. broken: keys of the stretch whose V is not
// finite, gone: those that are not there, a bit each.
struct Softmax {
  float* scores;
  uint32_t *weights, *values;
  float* state;
  uint32_t broken[STRETCH / STEP], gone[STRETCH / STEP];
};

static inline size_t state_size(int head_dim) { return (size_t)(head_dim + 3) * LANES; }

// 32 values by 16 columns of V as rows of columns: a tile. Returns which of the 32 are not finite; they are 0 in the tile,
// since no weight, not even 0, takes them out of a sum.
static inline uint32_t turn_values(const uint16_t* v, int head_dim, uint32_t* to) {
  const __m512i infinite = _mm512_set1_epi16(0x7f80);
  __mmask32 any = 0;
  __m512i rows[16];
  for (int i = 0; i < 16; ++i) {
    const __m512i even = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)(v + (size_t)2 * i * head_dim)));
    const __m512i odd = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)(v + (size_t)(2 * i + 1) * head_dim)));
    rows[i] = _mm512_or_si512(even, _mm512_slli_epi32(odd, 16));
    any |= _mm512_cmpeq_epi16_mask(_mm512_and_si512(rows[i], infinite), infinite);
  }
  uint32_t broken = 0;
  for (int i = 0; any && i < 16; ++i) {
    const __mmask32 here = _mm512_cmpeq_epi16_mask(_mm512_and_si512(rows[i], infinite), infinite);
    rows[i] = _mm512_maskz_mov_epi16(~here, rows[i]);
    broken |= (uint32_t)((here & 0x55555555u) != 0) << 2 * i | (uint32_t)((here & 0xaaaaaaaau) != 0) << (2 * i + 1);
  }
  transpose(rows);
  for (int i = 0; i < 16; ++i) store(to + i * LANES, rows[i]);
  return broken;
}

// Keys begin..end of a stretch, whole halves of pages, by the 16 tokens of q: scores, not yet scaled.
static inline void score(const Cache<uint16_t>& cache, int head, const Run& run, int begin, int end,
                         const uint32_t* q, float* scores) {
  const int hd = cache.head_dim;
  const size_t line = (size_t)hd * 2;
  for (int key = begin; key < end; key += 2 * TILE) {
    const uint16_t* k = cache.k + cache.at(run.page(key), head, key % PAGE);
    _tile_zero(0);
    _tile_zero(1);
    for (int c = 0; c < hd; c += STEP) {
      _tile_loadd(6, q + (size_t)c * LANES / 2, LINE);
      _tile_loadd(4, k + c, line);
      _tile_dpbf16ps(0, 4, 6);
      _tile_loadd(5, k + (size_t)TILE * hd + c, line);
      _tile_dpbf16ps(1, 5, 6);
    }
    _tile_stored(0, scores + (size_t)(key - begin) * LANES, LINE);
    _tile_stored(1, scores + (size_t)(key - begin + TILE) * LANES, LINE);
  }
}

// The tokens that see a key: up to their own place, and within the window.
static inline __mmask16 seen_from(int key, __m512i position, __m512i oldest) {
  const __m512i place = _mm512_set1_epi32(key);
  return _mm512_cmple_epi32_mask(place, position) & _mm512_cmpgt_epi32_mask(place, oldest);
}

// Scores of keys begin..end to weights; no token is kept from the keys all_from..all_to. What a token does not see weighs
// nothing, and a token that has seen no key yet has the maximum -inf.
static inline void soften(const Softmax& own, int begin, int end, __m512i position, int window, float scale, float* state,
                          int all_from, int all_to) {
  const __m512 none = _mm512_set1_ps(-INFINITY);
  __m512 most = _mm512_loadu_ps(state);
  const __m512i oldest = _mm512_sub_epi32(position, _mm512_set1_epi32(window ? window : 0x3fffffff));
  for (int key = begin; key < end; ++key) {
    float* at = own.scores + (size_t)(key - begin) * LANES;
    __m512 s = _mm512_load_ps(at);
    const bool gone = own.gone[(key - begin) / STEP] >> (key - begin) % STEP & 1;
    if (key < all_from || key > all_to || gone) {
      s = _mm512_mask_mov_ps(none, gone ? 0 : seen_from(key, position, oldest), s);
      _mm512_store_ps(at, s);
    }
    most = _mm512_max_ps(most, s);
  }
  const __m512 factor = _mm512_set1_ps(scale * 1.44269504f);
  const __m512 top = _mm512_maskz_mul_ps(_mm512_cmp_ps_mask(most, none, _CMP_NEQ_UQ), most, factor);
  const __m512 shrink = exp2_of(_mm512_fmsub_ps(_mm512_loadu_ps(state), factor, top));
  const auto weight = [&](const float* at) {
    const __m512 s = _mm512_load_ps(at);
    const __mmask16 seen = _mm512_cmp_ps_mask(s, none, _CMP_NEQ_UQ);
    return _mm512_maskz_mov_ps(seen, exp2_of(_mm512_fmsub_ps(s, factor, top)));
  };
  __m512 even = _mm512_setzero_ps(), odd = even;
  for (int key = begin; key < end; key += 2) {
    const float* at = own.scores + (size_t)(key - begin) * LANES;
    const __m512 a = weight(at), b = weight(at + LANES);
    even = _mm512_add_ps(even, a);
    odd = _mm512_add_ps(odd, b);
    store(own.weights + (size_t)(key - begin) / 2 * LANES, paired(a, b));
  }
  __m512 total = _mm512_fmadd_ps(_mm512_loadu_ps(state + LANES), shrink, _mm512_add_ps(even, odd));
  for (int key = begin; key < end; ++key)  // V that is not finite is nobody's number but theirs who see it
    if ((own.broken[(key - begin) / STEP] & ~own.gone[(key - begin) / STEP]) >> (key - begin) % STEP & 1)
      total = _mm512_mask_mov_ps(total, seen_from(key, position, oldest), _mm512_set1_ps(NAN));
  _mm512_storeu_ps(state, most);
  _mm512_storeu_ps(state + LANES, total);
  _mm512_storeu_ps(state + 2 * LANES, shrink);
}

// values [head_dim][16] = shrink * values + V by weights. first: there was no stretch before.
static inline void weigh(const Softmax& own, int count, int head_dim, bool first, float* state) {
  const __m512 shrink = _mm512_loadu_ps(state + 2 * LANES);
  float* values = state + 3 * LANES;
  alignas(64) float sums[4][LANES * TILE];
  const int blocks = head_dim / TILE;
  for (int f = 0; f < blocks; f += 4) {
    const int tiles = std::min(4, blocks - f);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int key = 0; key < count; key += STEP) {
      const uint32_t* v = own.values + ((size_t)(key / STEP) * blocks + f) * TILE * LANES;
      _tile_loadd(6, own.weights + (size_t)key / 2 * LANES, LINE);
      _tile_loadd(4, v, LINE);
      _tile_dpbf16ps(0, 4, 6);
      _tile_loadd(5, v + TILE * LANES, LINE);
      _tile_dpbf16ps(1, 5, 6);
      if (tiles < 4) continue;
      _tile_loadd(4, v + 2 * TILE * LANES, LINE);
      _tile_dpbf16ps(2, 4, 6);
      _tile_loadd(5, v + 3 * TILE * LANES, LINE);
      _tile_dpbf16ps(3, 5, 6);
    }
    _tile_stored(0, sums[0], LINE);
    _tile_stored(1, sums[1], LINE);
    _tile_stored(2, sums[2], LINE);
    _tile_stored(3, sums[3], LINE);
    for (int r = 0; r < tiles * TILE; ++r) {
      float* at = values + (size_t)(f * TILE + r) * LANES;
      const __m512 sum = _mm512_load_ps(sums[0] + r * LANES);
      _mm512_storeu_ps(at, first ? sum : _mm512_fmadd_ps(_mm512_loadu_ps(at), shrink, sum));
    }
  }
}

// One KV head for a run: q and out are panels of a block, [heads * head_dim]. Returns the keys read.
static inline int attend_run(const Cache<uint16_t>& cache, const LayerSpec& l, int head, const Run& run, const Panel& q,
                             const Panel& out, Softmax& own) {
  const int hd = l.head_dim, share = l.heads / l.kv_heads, blocks = hd / TILE;
  const int from = run.first / LANES, to = (run.end - 1) / LANES + 1;
  const int last = run.positions[run.end - 1], lowest = run.positions[run.first];  // places rise within a run
  const int start = l.window && lowest + 1 > l.window ? (lowest + 1 - l.window) / PAGE * PAGE : 0;
  int read = 0;
  bool first = true;
  for (int begin = start; begin <= last; begin = (begin / STRETCH + 1) * STRETCH, first = false) {
    const int stop = std::min((begin / STRETCH + 1) * STRETCH, last / STEP * STEP + STEP);
    for (int key = begin; key < stop; key += STEP) {
      const int step = (key - begin) / STEP;
      own.broken[step] = 0;
      own.gone[step] = run.gone(key);
      for (int f = 0; f < blocks; ++f)
        own.broken[step] |= turn_values(cache.v + cache.at(run.page(key), head, key % PAGE) + f * TILE, hd,
                                        own.values + ((size_t)step * blocks + f) * TILE * LANES);
    }
    read += stop - begin;
    for (int g = from; g < to; ++g) {
      alignas(64) int32_t places[LANES];
      int low = INT32_MAX, high = -1;
      for (int i = 0; i < LANES; ++i) {
        const int n = g * LANES + i;
        places[i] = n >= run.first && n < run.end ? run.positions[n] : -1;
        if (places[i] < 0) continue;
        low = std::min(low, places[i]);
        high = std::max(high, places[i]);
      }
      const int end = std::min(stop, high / STEP * STEP + STEP), all_from = l.window ? high - l.window + 1 : 0;
      for (int h = head * share; h < (head + 1) * share; ++h) {
        float* state = own.state + ((size_t)(g - from) * share + h % share) * state_size(hd);
        if (first) {
          _mm512_storeu_ps(state, _mm512_set1_ps(-INFINITY));
          _mm512_storeu_ps(state + LANES, _mm512_setzero_ps());
        }
        if (end <= begin) continue;
        score(cache, head, run, begin, end, q.at(g, h * hd), own.scores);
        soften(own, begin, end, _mm512_load_si512(places), l.window, l.scale, state, all_from, low);
        weigh(own, end - begin, hd, first, state);
      }
    }
  }
  for (int g = from; g < to; ++g) {
    const int before = std::max(run.first - g * LANES, 0), after = std::min(run.end - g * LANES, LANES);
    const __mmask16 mine = (__mmask16)((1u << after) - (1u << before));
    for (int h = head * share; h < (head + 1) * share; ++h) {
      const float* state = own.state + ((size_t)(g - from) * share + h % share) * state_size(hd);
      const __m512 by = _mm512_div_ps(_mm512_set1_ps(1.0f), _mm512_loadu_ps(state + LANES));
      for (int c = 0; c < hd; c += 2) {
        const float* at = state + (size_t)(3 + c) * LANES;
        const __m512 a = _mm512_mul_ps(_mm512_loadu_ps(at), by), b = _mm512_mul_ps(_mm512_loadu_ps(at + LANES), by);
        _mm512_mask_storeu_epi32(out.at(g, h * hd + c), mine, paired(a, b));
      }
    }
  }
  return read;
}

}  // namespace amx
