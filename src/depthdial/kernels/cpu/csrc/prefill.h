// One pass of many tokens through the whole model. A thread takes tokens, not rows of weights: K, V and the decision of
// its share of all tokens, then the layer for its share of those that are kept and the adapter for those that are not. It
// gathers them once, and meets the others twice in a layer. What a token gets does not depend on its neighbours.
#pragma once
#include "prefill_memory.h"
#include "shares.h"

class Prefill {
  using Panel = amx::Panel;
 public:
  Prefill(Model& model, PrefillMemory& memory, PassSpec& pass, int thread)
      : m(model), s(memory), p(pass), t(thread), own(*memory.own[thread]), N(pass.tokens), D(model.spec.dim),
        touched(std::any_of(pass.offsets, pass.offsets + N, [](float offset) { return offset != INFINITY; })) {}

  void all() {
    own.padded = 0;
    own.kv_bytes = 0;
    begin();
    m.pool.barrier();
    for (int index = 0; index < m.spec.count; ++index) layer(index, s.layers[index]);
    if (p.asked_count) head();
  }

 private:
  Share share(int count, int unit) const { return even(count, unit, m.pool.size(), t); }

  // This thread's part of the kept tokens.
  Share heavy(const LayerSpec& l) const {
    const double width = l.heads * l.head_dim, fixed = D * (2 * width + 3.0 * l.gate.rows);
    return by_work(own.kept.size(), m.pool.size(), t, [&](int i) {
      const int seen = p.positions[own.kept[i]] + 1;
      return fixed + 6 * width * (l.window ? std::min(seen, l.window) : seen);  // a key costs more than its products
    });
  }

  template <class Block>
  static void blocks(Share part, Block block) {
    for (int at = part.begin; at < part.end; at += MOST_TOKENS) block(at, std::min(MOST_TOKENS, part.end - at));
  }

  static int groups(int count) { return (count + amx::LANES - 1) / amx::LANES; }
  float* angle(int rope, int n) const { return s.cos_sin + ((size_t)rope * N + n) * 2 * m.half; }
  const int32_t* pages(int n) const { return p.page_table + (size_t)p.sequences[n] * p.table_stride; }

  Cache<uint16_t> cache(int index, const LayerSpec& l) const {
    const size_t at = (size_t)index * p.layer_stride;
    return {(uint16_t*)p.k_cache + at, (uint16_t*)p.v_cache + at, l.kv_heads, l.head_dim};
  }

  void begin() {
    const Mat& table = m.spec.embed;
    const float scale = round_bf16(m.spec.embed_scale);
    const Share mine = share(N, 1);
    if (t == 0) p.weight_bytes += N * row_bytes(table);
    for (int n = mine.begin; n < mine.end; ++n) {
      uint16_t* x = s.x + (size_t)n * D;
      const size_t row = (size_t)p.ids[n] * D;
      for (int i = 0; i < D; ++i) {
        const float value = table.kind == INT8 ? round_bf16(((const int8_t*)table.data)[row + i] * table.scale[p.ids[n]])
                                               : from_bf16(((const uint16_t*)table.data)[row + i]);
        x[i] = to_bf16(value * scale);
      }
      for (int rope = 0; rope < m.spec.ropes; ++rope)
        angles(m.inv_freq.data() + rope * m.half, m.rope_scaling[rope], p.positions[n], m.half, true, angle(rope, n));
    }
  }

  void layer(int index, const LayerSpec& l) {
    const bool routed = l.router.enc.data && touched;
    if (!l.sparse_kv) {
      blocks(share(N, amx::LANES), [&](int at, int count) {
        take(l, nullptr, at, count);
        if (routed) ask(l.router, m.layers[index].router.enc.rows, at, count);
        project(index, l, own.rows.data(), count);
      });
      m.pool.barrier();
      decide(index, l);
    } else {
      if (routed) {
        blocks(share(N, amx::LANES), [&](int at, int count) {
          take(l, nullptr, at, count);
          ask(l.router, m.layers[index].router.enc.rows, at, count);
        });
        m.pool.barrier();
      }
      decide(index, l);
      blocks(share(own.kept.size(), amx::LANES), [&](int at, int count) {
        take(l, own.kept.data(), at, count);
        project(index, l, own.kept.data() + at, count);
      });
      m.pool.barrier();
    }
    if (t == 0) count(index);
    blocks(heavy(l), [&](int at, int count) { run(index, l, own.kept.data() + at, count); });
    if (l.adapter_gate.data)
      blocks(share(own.skipped.size(), amx::LANES), [&](int at, int count) { pass_by(l, own.skipped.data() + at, count); });
    m.pool.barrier();
  }

  // The normed input of tokens at..at + count of `among`; null: of all.
  void take(const LayerSpec& l, const int* among, int at, int count) {
    own.rows.resize(count);
    for (int i = 0; i < count; ++i) own.rows[i] = among ? among[at + i] : at + i;
    amx::gather(own.x, s.x, D, own.rows.data(), count);
    amx::norm(own.x, own.z, groups(count), 0, D, l.before_attn);
  }

  // K and V of tokens, written into the cache.
  void project(int index, const LayerSpec& l, const int* rows, int count) {
    const int width = l.kv_heads * l.head_dim, all = groups(count);
    amx::product(l.k, own.z, all, own.inner, 0, own.scratch);
    amx::product(l.v, own.z, all, own.inner, width, own.scratch);
    turn(own.inner, l, l.kv_heads, l.k_norm, rows, count);
    const Cache<uint16_t> to = cache(index, l);
    for (int head = 0; head < l.kv_heads; ++head)
      for (uint16_t* into : {to.k, to.v})
        amx::scatter(own.inner, head * l.head_dim + (into == to.k ? 0 : width), l.head_dim, count, [&](int i, int c, __m512i v) {
          const int place = p.positions[rows[i]];
          _mm512_storeu_si512(into + to.at(pages(rows[i])[place / PAGE], head, place % PAGE) + c, v);
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

  void ask(const RouterSpec& router, int rank, int at, int count) {
    const int padded = router.enc.rows;
    amx::product(router.enc, own.z, groups(count), 0, padded, own.scratch, [&](int row, int g, const float* sums) {
      for (int r = 0; r < amx::TILE; ++r)
        _mm512_storeu_ps(own.codes + ((size_t)g * padded + row + r) * amx::LANES, amx::value(router.enc, row, sums, r));
    });
    for (int g = 0; g < groups(count); ++g) {
      const __m512 logit = amx::router_logits(own.codes + (size_t)g * padded * amx::LANES, router, rank);
      const int first = at + g * amx::LANES;
      const __mmask16 here = (__mmask16)((1u << std::min(amx::LANES, at + count - first)) - 1);
      const __m512 offset = _mm512_maskz_loadu_ps(here, p.offsets + first);
      _mm512_mask_storeu_ps(s.shifted + first, here, _mm512_add_ps(logit, offset));
    }
  }

  // As `Pass::follow` and `Pass::route`; every thread for all tokens.
  void decide(int index, const LayerSpec& l) {
    const bool routed = l.router.enc.data && touched;
    own.kept.clear();
    own.skipped.clear();
    own.run.assign(N, 1.0f);
    own.skip.assign(N, 1.0f);
    for (int n = 0; n < N; ++n) {
      bool keep = true;
      float score = 1.0f;
      if (p.offsets[n] != INFINITY && routed) {
        score = sigmoid(s.shifted[n]);
        keep = s.shifted[n] > l.router.cut;
        if (l.router.soft) {
          own.run[n] = score;
          own.skip[n] = 1.0f - score;
        }
      } else if (p.offsets[n] != INFINITY && !l.router.enc.data && p.given) {
        score = keep = p.given[(size_t)index * N + n] != 0;
      }
      (keep ? own.kept : own.skipped).push_back(n);
      if (t != 0) continue;
      p.keep[(size_t)index * N + n] = keep;
      p.score[(size_t)index * N + n] = score;
    }
  }

  void count(int index) {
    p.rows_run += own.kept.size();
    p.layers_run += !own.kept.empty();
    p.weight_bytes += bytes_of(m.layers[index], !own.kept.empty(), !own.skipped.empty(), touched);
  }

  // The layer for a block of kept tokens.
  void run(int index, const LayerSpec& l, const int* rows, int count) {
    const int all = groups(count);
    own.q.cols = own.attended.cols = l.heads * l.head_dim;
    own.padded += all * amx::LANES - count;
    amx::gather(own.x, s.x, D, rows, count);
    amx::norm(own.x, own.z, all, 0, D, l.before_attn);
    amx::product(l.q, own.z, all, own.q, 0, own.scratch);
    turn(own.q, l, l.heads, l.q_norm, rows, count);
    attention(index, l, rows, count);
    weights(nullptr, rows, count);
    add(l.o, own.attended, all, l.after_attn);
    amx::norm(own.x, own.z, all, 0, D, l.before_mlp);
    amx::opened(l.gate, l.up, own.z, all, l.gelu, whole(l.gate.rows), own.scratch);
    weights(own.run.data(), rows, count);
    add(l.down, whole(l.gate.rows), all, l.after_mlp);
    back(rows, count);
  }

  // What a block of skipped tokens gets instead.
  void pass_by(const LayerSpec& l, const int* rows, int count) {
    const int all = groups(count);
    amx::gather(own.x, s.x, D, rows, count);
    amx::norm(own.x, own.z, all, 0, D, l.before_mlp);
    const Panel inner = whole(l.adapter_gate.rows);
    amx::opened(l.adapter_gate, l.adapter_up, own.z, all, false, inner, own.scratch);
    weights(own.skip.data(), rows, count);
    add(l.adapter_down, inner, all, {});
    back(rows, count);
  }

  Panel whole(int cols) const { return {own.inner.data, cols}; }

  // Of the updates of a block, rounded; null: 1.
  void weights(const float* of, const int* rows, int count) {
    for (int i = 0; i < groups(count) * amx::LANES; ++i) own.weight[i] = of && i < count ? round_bf16(of[rows[i]]) : 1.0f;
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

  void back(const int* rows, int count) {
    amx::scatter(own.x, 0, D, count, [&](int i, int c, __m512i v) { _mm512_storeu_si512(s.x + (size_t)rows[i] * D + c, v); });
  }

  void attention(int index, const LayerSpec& l, const int* rows, int count) {
    const Cache<uint16_t> from = cache(index, l);
    own.positions.resize(count);
    for (int i = 0; i < count; ++i) own.positions[i] = p.positions[rows[i]];
    for (int first = 0, end; first < count; first = end) {
      for (end = first + 1; end < count && p.sequences[rows[end]] == p.sequences[rows[first]];) ++end;
      const amx::Run part = {first, end, own.positions.data(), pages(rows[first])};
      for (int head = 0; head < l.kv_heads; ++head) {
        const int read = amx::attend_run(from, l, head, part, own.q, own.attended, own.softmax);
        own.kv_bytes += 4.0 * read * l.head_dim;
      }
    }
  }

  // Logits of the tokens that are asked for, [asked, vocabulary]: here threads share the rows of the matrix.
  void head() {
    const Mat& w = m.spec.head;
    const Share mine = share(w.rows, amx::STEP);
    if (t == 0) p.weight_bytes += w.rows * row_bytes(w);
    blocks({0, p.asked_count}, [&](int at, int count) {
      amx::gather(own.x, s.x, D, p.asked + at, count);
      amx::norm(own.x, own.z, groups(count), 0, D, m.spec.norm);
      if (mine.begin == mine.end) return;
      amx::product(w, own.z, groups(count), mine.begin, mine.end, own.scratch, [&](int row, int g, const float* sums) {
        __m512 v[16];
        for (int r = 0; r < amx::TILE; ++r) {
          v[r] = _mm512_load_ps(sums + r * amx::LANES);
          if (w.scale) v[r] = _mm512_mul_ps(v[r], _mm512_set1_ps(w.scale[row + r]));
          const __m512 cap = _mm512_set1_ps(m.spec.softcap);
          if (m.spec.softcap > 0) v[r] = _mm512_mul_ps(amx::tanh_lanes(_mm512_div_ps(v[r], cap)), cap);
        }
        const int first = at + g * amx::LANES;
        amx::spread(v, nullptr, 0, std::min(amx::LANES, at + count - first), p.logits + (size_t)first * w.rows + row, 1, w.rows,
                    false);
      });
    });
  }

  Model& m;
  PrefillMemory& s;
  PassSpec& p;
  const int t;
  BlockMemory& own;
  const int N, D;
  const bool touched;  // does any token ask a router?
};
