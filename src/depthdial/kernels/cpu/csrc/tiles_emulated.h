// The tile instructions of AMX in AVX-512, for tests of what is written for AMX on machines that have none. Sums go as
// Intel's manual has them: even and odd values of pairs apart within an instruction, then together onto the tile.
#pragma once
#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace amx::emulated {

struct Tile {
  int rows, bytes;
  alignas(64) uint8_t data[16][64];
};

static thread_local Tile TILES[8];

static inline void load_config(const void* shape) {
  const uint8_t* from = static_cast<const uint8_t*>(shape);
  for (int t = 0; t < 8; ++t) {
    uint16_t bytes;
    memcpy(&bytes, from + 16 + 2 * t, 2);
    TILES[t].rows = from[48 + t];
    TILES[t].bytes = bytes;
  }
}

static inline void zero(int t) { memset(TILES[t].data, 0, sizeof TILES[t].data); }

static inline void load(int t, const void* from, size_t stride) {
  zero(t);
  for (int r = 0; r < TILES[t].rows; ++r) memcpy(TILES[t].data[r], (const char*)from + r * stride, TILES[t].bytes);
}

static inline void store(int t, void* to, size_t stride) {
  for (int r = 0; r < TILES[t].rows; ++r) memcpy((char*)to + r * stride, TILES[t].data[r], TILES[t].bytes);
}

static inline __m512 even(__m512i pair) { return _mm512_castsi512_ps(_mm512_slli_epi32(pair, 16)); }

static inline __m512 odd(__m512i pair) {
  return _mm512_castsi512_ps(_mm512_and_si512(pair, _mm512_set1_epi32((int)0xffff0000)));
}

static inline void dot_bf16(int to, int a, int b) {
  for (int m = 0; m < TILES[to].rows; ++m) {
    __m512 first = _mm512_setzero_ps(), second = first;
    for (int k = 0; k < TILES[a].bytes / 4; ++k) {
      int pair;
      memcpy(&pair, TILES[a].data[m] + 4 * k, 4);
      const __m512i left = _mm512_set1_epi32(pair), right = _mm512_load_si512(TILES[b].data[k]);
      first = _mm512_fmadd_ps(even(left), even(right), first);
      second = _mm512_fmadd_ps(odd(left), odd(right), second);
    }
    float* sum = (float*)TILES[to].data[m];
    _mm512_store_ps(sum, _mm512_add_ps(_mm512_load_ps(sum), _mm512_add_ps(first, second)));
  }
}

static inline void dot_int8(int to, int a, int b) {
  for (int m = 0; m < TILES[to].rows; ++m)
    for (int n = 0; n < TILES[to].bytes / 4; ++n) {
      int32_t sum;
      memcpy(&sum, TILES[to].data[m] + 4 * n, 4);
      for (int k = 0; k < TILES[a].bytes; ++k)
        sum += (int)(int8_t)TILES[a].data[m][k] * (int)(int8_t)TILES[b].data[k / 4][4 * n + k % 4];
      memcpy(TILES[to].data[m] + 4 * n, &sum, 4);
    }
}

}  // namespace amx::emulated

#undef _tile_loadconfig
#undef _tile_release
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stream_loadd
#undef _tile_stored
#undef _tile_dpbf16ps
#undef _tile_dpbssd
#define _tile_loadconfig(shape) amx::emulated::load_config(shape)
#define _tile_release() ((void)0)
#define _tile_zero(t) amx::emulated::zero(t)
#define _tile_loadd(t, from, stride) amx::emulated::load(t, from, stride)
#define _tile_stream_loadd(t, from, stride) amx::emulated::load(t, from, stride)
#define _tile_stored(t, to, stride) amx::emulated::store(t, to, stride)
#define _tile_dpbf16ps(to, a, b) amx::emulated::dot_bf16(to, a, b)
#define _tile_dpbssd(to, a, b) amx::emulated::dot_int8(to, a, b)
