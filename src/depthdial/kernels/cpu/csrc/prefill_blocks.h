// What a thread does with a block of tokens of a large pass: gathered once into panels, and given back. What a token gets
// does not depend on its neighbours.
#pragma once
#include "prefill_memory.h"
#include "shares.h"

class PrefillBlocks {
 protected:
  using Panel = amx::Panel;

  PrefillBlocks(Model& model, PrefillMemory& memory, PassSpec& pass, int thread)
      : m(model), s(memory), p(pass), t(thread), own(*memory.own[thread]), st(own.steps), N(pass.tokens), D(model.spec.dim) {}

  template <class Block>
  static void blocks(Share part, Block block) {
    for (int at = part.begin; at < part.end; at += MOST_TOKENS) block(at, std::min(MOST_TOKENS, part.end - at));
  }

  static int groups(int count) { return (count + amx::LANES - 1) / amx::LANES; }
  float* angle(int rope, int n) const { return s.cos_sin + ((size_t)rope * N + n) * 2 * m.half; }
  const int32_t* pages(const LayerSpec& l, int n) const {
    return p.page_table + l.cache * p.cache_stride + (size_t)p.sequences[n] * p.table_stride;
  }

  Cache<uint16_t> cache(const LayerSpec& l) const {
    return {(uint16_t*)p.k_cache, (uint16_t*)p.v_cache, l.kv_heads, l.head_dim};
  }

  // The normed input of tokens at..at + count of `among`; null: of all.
  void take(const NormSpec& by, const int* among, int at, int count) {
    own.rows.resize(count);
    for (int i = 0; i < count; ++i) own.rows[i] = among ? among[at + i] : at + i;
    amx::gather(own.x, s.x, D, own.rows.data(), count);
    amx::norm(own.x, own.z, groups(count), 0, D, by);
  }

  // K and V of tokens, written into the cache.
  void project(const LayerSpec& l, const int* rows, int count) {
    const int width = l.kv_heads * l.head_dim, all = groups(count);
    amx::product(l.k, own.z, all, own.inner, 0, own.scratch);
    amx::product(l.v, own.z, all, own.inner, width, own.scratch);
    turn(own.inner, l, l.kv_heads, l.k_norm, rows, count);
    const Cache<uint16_t> to = cache(l);
    for (int head = 0; head < l.kv_heads; ++head)
      for (uint16_t* into : {to.k, to.v})
        amx::scatter(own.inner, head * l.head_dim + (into == to.k ? 0 : width), l.head_dim, count, [&](int i, int c, __m512i v) {
          const int place = p.positions[rows[i]];
          _mm512_storeu_si512(into + to.at(pages(l, rows[i])[place / PAGE], head, place % PAGE) + c, v);
        });
  }

  // Heads normed where the model does, and turned by their tokens' places.
  void turn(const Panel& x, const LayerSpec& l, int heads, const NormSpec& by, const int* rows, int count) {
    for (int head = 0; by.weight && head < heads; ++head)
      amx::norm(x, x, groups(count), head * l.head_dim, l.head_dim, by);
    for (int g = 0; g < groups(count); ++g) {
      for (int c = 0; c < l.head_dim; c += amx::LANES) {
        __m512i v[16];
        for (int i = 0; i < amx::LANES; ++i)
          v[i] = _mm512_loadu_si512(angle(l.rope, rows[std::min(g * amx::LANES + i, count - 1)]) + c);
        amx::transpose(v);
        for (int i = 0; i < 16; ++i) _mm512_storeu_si512(own.turns + (c + i) * amx::LANES, v[i]);
      }
      for (int head = 0; head < heads; ++head) amx::rotate(x, g, head * l.head_dim, m.half, own.turns);
    }
  }

  // What a router says of the tokens of the block, whose z there is.
  void ask(const RouterSpec& router) {
    const int wide = router.first.rows, count = own.rows.size();
    amx::product(router.first, own.z, groups(count), 0, wide, own.scratch, [&](int row, int g, const float* sums) {
      for (int r = 0; r < amx::TILE; ++r) {
        const __m512 code = amx::exact(router.first, row, sums, r);
        _mm512_storeu_ps(own.codes + ((size_t)g * wide + row + r) * amx::LANES, router.wide ? code : amx::rounded(code));
      }
    });
    for (int g = 0; g < groups(count); ++g) answer(router, own.codes + (size_t)g * wide * amx::LANES, g);
  }

  void answer(const RouterSpec& router, float* codes, int g) {
    alignas(64) float numbers[amx::LANES];
    float* other = own.codes + (size_t)MOST_TOKENS * up_to(m.rank, amx::TILE);
    _mm512_store_ps(numbers, amx::numbers_of(codes, other, router));
    const int first = g * amx::LANES, count = std::min(amx::LANES, (int)own.rows.size() - first);
    for (int i = 0; i < count; ++i) s.numbers[own.rows[first + i]] = numbers[i] + p.offsets[own.rows[first + i]];
  }

  // A visit for a block of tokens, or its attention or its MLP alone.
  void run(const LayerSpec& l, const int* rows, int count, bool attends, bool feeds) {
    const int all = groups(count);
    own.q.cols = own.attended.cols = l.heads * l.head_dim;
    own.padded += all * amx::LANES - count;
    amx::gather(own.x, s.x, D, rows, count);
    if (attends) {
      amx::norm(own.x, own.z, all, 0, D, l.before_attn);
      amx::product(l.q, own.z, all, own.q, 0, own.scratch);
      turn(own.q, l, l.heads, l.q_norm, rows, count);
      attention(l, rows, count);
      weights(l, feeds ? nullptr : st.run.data(), rows, count);
      add(l.o, own.attended, all, l.after_attn);
    }
    if (feeds) {
      amx::norm(own.x, own.z, all, 0, D, l.before_mlp);
      amx::opened(l.gate, l.up, own.z, all, l.act == ACT_GELU, whole(l.gate.rows), own.scratch);
      weights(l, l.whole ? nullptr : st.run.data(), rows, count);
      add(l.down, whole(l.gate.rows), all, l.after_mlp);
    }
    back(rows, count, l.whole);
  }

  // What a block of skipped tokens gets instead.
  void pass_by(const LayerSpec& l, const int* rows, int count) {
    const int all = groups(count);
    amx::gather(own.x, s.x, D, rows, count);
    amx::norm(own.x, own.z, all, 0, D, l.before_mlp);
    const Panel inner = whole(l.adapter_gate.rows);
    amx::opened(l.adapter_gate, l.adapter_up, own.z, all, false, inner, own.scratch);
    weights(l, st.skip.data(), rows, count);
    add(l.adapter_down, inner, all, {});
    back(rows, count);
  }

  Panel whole(int cols) const { return {own.inner.data, cols}; }

  // Of the updates of a block, rounded; null: 1.
  void weights(const LayerSpec& l, const float* of, const int* rows, int count) {
    for (int i = 0; i < groups(count) * amx::LANES; ++i)
      own.weight[i] = (of && i < count ? round_bf16(of[rows[i]]) : 1.0f) * l.residual;
  }

  // x += weight * (w by), normed where the model does.
  void add(const Mat& w, const Panel& by, int all, const NormSpec& after) {
    const auto weight = [&](int g) { return _mm512_load_ps(own.weight + g * amx::LANES); };
    if (!after.weight) {
      amx::product(w, by, all, 0, w.rows, own.scratch, [&](int row, int g, const float* sums) {
        for (int r = 0; r < amx::TILE; r += 2)
          amx::join(own.x.at(g, row + r), amx::value(w, row, sums, r), amx::value(w, row, sums, r + 1), weight(g));
      });
      return;
    }
    amx::product(w, by, all, own.z, 0, own.scratch);
    amx::norm(own.z, own.z, all, 0, D, after);
    for (int g = 0; g < all; ++g)
      for (int c = 0; c < D; c += 2) {
        const __m512i pair = amx::load(own.z.at(g, c));
        amx::join(own.x.at(g, c), amx::low(pair), amx::high(pair), weight(g));
      }
  }

  // blend: as far as the tokens' weights say, from what there was.
  void back(const int* rows, int count, bool blend = false) {
    amx::scatter(own.x, 0, D, count, [&](int i, int c, __m512i v) {
      uint16_t* to = s.x + (size_t)rows[i] * D + c;
      const float weight = st.run[rows[i]];
      if (!blend || weight == 1.0f) {
        _mm512_storeu_si512(to, v);
        return;
      }
      uint16_t after[32];
      _mm512_storeu_si512(after, v);
      for (int j = 0; j < 32; ++j) to[j] = to_bf16(between(from_bf16(to[j]), from_bf16(after[j]), weight, true));
    });
  }

  void attention(const LayerSpec& l, const int* rows, int count) {
    const Cache<uint16_t> from = cache(l);
    own.positions.resize(count);
    for (int i = 0; i < count; ++i) own.positions[i] = p.positions[rows[i]];
    for (int first = 0, end; first < count; first = end) {
      for (end = first + 1; end < count && p.sequences[rows[end]] == p.sequences[rows[first]];) ++end;
      const amx::Run part = {first, end, own.positions.data(), pages(l, rows[first]), l.nothing ? p.held : nullptr};
      for (int head = 0; head < l.kv_heads; ++head) {
        const int read = amx::attend_run(from, l, head, part, own.q, own.attended, own.softmax);
        own.kv_bytes += 4.0 * read * l.head_dim;
      }
    }
  }

  __m512 logits(int row, const float* sums, int r) const {
    const __m512 cap = _mm512_set1_ps(m.spec.softcap);
    const __m512 logit = _mm512_mul_ps(amx::exact(m.spec.head, row, sums, r), _mm512_set1_ps(m.spec.logit_scale));
    return m.spec.softcap > 0 ? _mm512_mul_ps(amx::tanh_lanes(_mm512_div_ps(logit, cap)), cap) : logit;
  }

  Model& m;
  PrefillMemory& s;
  PassSpec& p;
  const int t;
  BlockMemory& own;
  Steps& st;
  const int N, D;
};
