// Plain C++: any machine with a compiler, its own order of bytes aside (the first is the least).
#pragma once

namespace blocks {

struct Floats {
  float v[16];
};
struct Bytes {
  uint8_t v[64];
};
using Half = float;  // no activations are packed as bf16

template <class Make>
static inline Floats lanes(Make make) {
  Floats out;
  for (int r = 0; r < 16; ++r) out.v[r] = make(r);
  return out;
}

static inline Floats operator*(const Floats& a, const Floats& b) {
  return lanes([&](int r) { return a.v[r] * b.v[r]; });
}
static inline Floats fma(const Floats& a, const Floats& b, const Floats& c) {
  return lanes([&](int r) { return a.v[r] * b.v[r] + c.v[r]; });
}
static inline Floats all(float x) {
  return lanes([&](int) { return x; });
}
static inline void store(float* to, const Floats& x) { memcpy(to, x.v, sizeof x.v); }
static inline Floats from_int8(const void* p) {
  return lanes([&](int r) { return (float)((const int8_t*)p)[r]; });
}
static inline Floats from_uint8(const void* p) {
  return lanes([&](int r) { return (float)((const uint8_t*)p)[r]; });
}
static inline Floats from_fp16(const void* p) {
  return lanes([&](int r) {
    uint16_t half;
    memcpy(&half, (const char*)p + 2 * r, 2);
    const uint32_t bits = (uint32_t)(half & 0x7fff) << 13;  // the exponent is 112 too small: right for denormal ones, too
    float x;
    memcpy(&x, &bits, 4);
    x *= 5.192296858534828e33f;  // 2^112
    return half & 0x8000 ? -x : x;
  });
}

template <class Make>
static inline Bytes bytes(Make make) {
  Bytes out;
  for (int i = 0; i < 64; ++i) out.v[i] = make(i);
  return out;
}

static inline Bytes load(const uint8_t* p) {
  return bytes([&](int i) { return p[i]; });
}
static inline void store(uint8_t* to, const Bytes& x) { memcpy(to, x.v, sizeof x.v); }
static inline Bytes low_nibbles(const Bytes& x) {
  return bytes([&](int i) { return x.v[i] & 15; });
}
static inline Bytes high_nibbles(const Bytes& x) {
  return bytes([&](int i) { return x.v[i] >> 4; });
}

// x | (bits, moved right by SHIFT, & MASK)
template <int SHIFT, int MASK>
static inline Bytes with_bits(const Bytes& x, const Bytes& bits) {
  return bytes([&](int i) { return x.v[i] | ((SHIFT > 0 ? bits.v[i] >> (SHIFT & 7) : bits.v[i] << (-SHIFT & 7)) & MASK); });
}

using Codes = const Bytes (&)[8];

template <class X, int BITS>
constexpr float surplus() {
  return 0.0f;
}

template <int BITS, int COUNT, int FIRST, class X>
static inline Floats dot(Codes codes, const X* x) {
  const Bytes* q = codes + FIRST;
  std::conditional_t<std::is_same_v<X, int8_t>, int32_t, float> sum[16] = {};
  for (int i = 0; i < COUNT; ++i)
    for (int c = 0; c < 4; ++c)
      for (int r = 0; r < 16; ++r) sum[r] += q[i].v[4 * r + c] * x[4 * i + c];
  return lanes([&](int r) { return (float)sum[r]; });
}

// What tokens packed as X are multiplied by.
template <class X, int BITS>
using Ready = Codes;

}  // namespace blocks
