// One pass of a few tokens through the whole model. Every thread runs `Pass::all`: it takes its share of the rows of each
// matrix and of the attention heads, and meets the others at barriers.
#pragma once
#include "head.h"
#include "model.h"

template <class T>
class Pass {
 public:
  Pass(Model& model, PassSpec& pass, int thread)
      : m(model), p(pass), t(thread), own(*model.own[thread]), N(pass.tokens), D(model.spec.dim), bf16(model.spec.bf16) {}

  void all() {
    own.weight_bytes = 0;
    own.kv_bytes = 0;
    for (Packed* x : {&own.a.view, &own.b.view}) {
      x->width = N < 16 ? N : 16;
      x->near = own.near;
      x->near_kind = !p.reading ? INT8 : bf16 && sizeof(isa::Half) == 2 ? BF16 : FP32;
    }
    begin();
    for (int index = 0; index < m.spec.count; ++index) layer(index);
    if (p.asked_count && (p.logits || p.argmax)) head(m, p, own, t);
  }

 private:
  Share share(int count, int unit) const { return even(count, unit, m.pool.size(), t); }

  void multiply(const Mat& w, const Packed& x, float* out) {
    if (x.tokens == 0) return;
    const Share s = share(w.rows, 16);
    own.weight_bytes += linear_rows(w, x, s.begin, s.end, out, w.rows, bf16);
  }

  // Starts to read what this thread needs of w after the next barrier.
  void expect(const Mat& w) const {
    const Share s = share(w.rows, 16);
    if (w.data) fetch(w, s.begin, s.end);
  }

  void begin() {
    const Mat& table = m.spec.embed;
    const float scale = rounded(m.spec.embed_scale, bf16);
    for (int n = 0; n < N; ++n) {
      float* x = own.x + (size_t)n * D;
      const size_t row = (size_t)p.ids[n] * D;
      for (int i = 0; i < D; ++i) {
        if (table.kind == INT8) x[i] = rounded(((const int8_t*)table.data)[row + i] * table.scale[p.ids[n]], bf16);
        else if (table.kind == BF16) x[i] = from_bf16(((const uint16_t*)table.data)[row + i]);
        else x[i] = ((const float*)table.data)[row + i];
        if (scale != 1.0f) x[i] = rounded(x[i] * scale, bf16);
      }
    }
    if (t == 0) own.weight_bytes += N * row_bytes(table);
    const Share s = share(m.spec.ropes * N, 1);
    for (int i = s.begin; i < s.end; ++i) {
      const int rope = i / N;
      angles(m.inv_freq.data() + rope * m.half, m.rope_scaling[rope], p.positions[i % N], m.half, bf16,
             m.cos_sin + (size_t)i * 2 * m.half);
    }
    m.pool.barrier();
  }

  void layer(int index) {
    const LayerSpec& l = m.layers[index];
    const int side = index & 1;
    for (int n = 0; n < N; ++n) rms_norm(own.x + (size_t)n * D, D, l.before_attn, bf16, own.z + (size_t)n * D);
    pack(own.a.view, own.z, nullptr, N, D, l.k.kind);
    const bool routed = l.router.enc.data && touched();
    if (routed) {
      if (l.router.enc.kind != l.k.kind) pack(own.b.view, own.z, nullptr, N, D, l.router.enc.kind);
      multiply(l.router.enc, l.router.enc.kind != l.k.kind ? own.b.view : own.a.view, m.code[side]);
    } else {
      follow(index, l);
    }
    if (l.sparse_kv) {
      if (routed) {
        m.pool.barrier();
        route(index, l, m.code[side]);
      }
      pack(own.a.view, own.z, own.kept.data(), own.kept.size(), D, l.k.kind);
    }
    multiply(l.k, own.a.view, m.k[side]);
    multiply(l.v, own.a.view, m.v[side]);
    const bool later = routed && !l.sparse_kv;  // the decision comes with K and V, at the barrier
    if (later) expect(l.q);
    else queries(l);
    m.pool.barrier();
    if (later) {
      route(index, l, m.code[side]);
      queries(l);
    }
    write(index, l, side);
    if (t == 0) {
      p.rows_run += own.kept.size();
      p.layers_run += !own.kept.empty();
    }
    if (!own.kept.empty()) attention(index, l);
    const Mat& next = &l == &m.layers.back() ? m.spec.head : first(*(&l + 1));
    if (!own.kept.empty() || (!own.skipped.empty() && l.adapter_gate.data)) mlp(l, next);
    else expect(next);
  }

  static const Mat& first(const LayerSpec& l) { return l.router.enc.data ? l.router.enc : l.k; }

  bool touched() const {
    for (int n = 0; n < N; ++n)
      if (p.offsets[n] != INFINITY) return true;
    return false;
  }

  // The decision at a layer without a router: given from outside, or everything runs.
  void follow(int index, const LayerSpec& l) {
    own.kept.clear();
    own.skipped.clear();
    for (int n = 0; n < N; ++n) {
      const bool free = !l.router.enc.data && p.given && p.offsets[n] != INFINITY;
      const bool keep = free ? p.given[(size_t)index * N + n] != 0 : true;
      decided(index, n, keep, keep ? 1.0f : 0.0f, 1.0f, 1.0f);
    }
  }

  void route(int index, const LayerSpec& l, const float* codes) {
    own.kept.clear();
    own.skipped.clear();
    for (int n = 0; n < N; ++n) {
      if (p.offsets[n] == INFINITY) {
        decided(index, n, true, 1.0f, 1.0f, 1.0f);
        continue;
      }
      memcpy(own.code, codes + (size_t)n * l.router.enc.rows, sizeof(float) * l.router.enc.rows);
      const float shifted = router_logit(own.code, l.router) + p.offsets[n], g = sigmoid(shifted);
      decided(index, n, shifted > l.router.cut, g, l.router.soft ? g : 1.0f, l.router.soft ? 1.0f - g : 1.0f);
    }
  }

  void decided(int index, int n, bool keep, float score, float run, float skip) {
    (keep ? own.kept : own.skipped).push_back(n);
    own.run[n] = run;
    own.skip[n] = skip;
    if (t != 0) return;
    p.keep[(size_t)index * N + n] = keep;
    p.score[(size_t)index * N + n] = score;
  }

  // Row i of m.q belongs to the i-th kept token.
  void queries(const LayerSpec& l) {
    const int kept = own.kept.size();
    const bool same = (kept == N || l.sparse_kv) && l.q.kind == l.k.kind;
    if (!same) pack(own.b.view, own.z, own.kept.data(), kept, D, l.q.kind);
    multiply(l.q, same ? own.a.view : own.b.view, m.q);
  }

  Cache<T> cache(int index, const LayerSpec& l) const {
    const size_t at = (size_t)index * p.layer_stride;
    return {(T*)p.k_cache + at, (T*)p.v_cache + at, l.kv_heads, l.head_dim};
  }

  const int32_t* pages(int n) const { return p.page_table + (size_t)p.sequences[n] * p.table_stride; }
  const float* turn(const LayerSpec& l, int n) const { return m.cos_sin + ((size_t)l.rope * N + n) * 2 * m.half; }

  void write(int index, const LayerSpec& l, int side) {
    const Share s = share((l.sparse_kv ? own.kept.size() : N) * l.kv_heads, 1);
    for (int i = s.begin; i < s.end; ++i) {
      const int n = l.sparse_kv ? own.kept[i / l.kv_heads] : i / l.kv_heads, head = i % l.kv_heads;
      const size_t at = (size_t)i * l.head_dim;
      norm_and_rotate(m.k[side] + at, l.k_norm, turn(l, n), m.half, bf16);
      cache(index, l).write(pages(n)[p.positions[n] / PAGE], head, p.positions[n] % PAGE, m.k[side] + at, m.v[side] + at);
    }
  }

  void attention(int index, const LayerSpec& l) {
    expect(l.o);
    m.pool.barrier();
    const int kept = own.kept.size(), group = l.heads / l.kv_heads, width = l.heads * l.head_dim;
    const Share s = share(kept * l.heads, 1);
    for (int i = s.begin; i < s.end;) {
      const int row = i / l.heads, first = i % l.heads, n = own.kept[row];
      int last = (first / group + 1) * group;
      if (last - first > s.end - i) last = first + s.end - i;
      float* q = m.q + (size_t)row * width;
      for (int h = first; h < last; ++h)
        norm_and_rotate(q + (size_t)h * l.head_dim, l.q_norm, turn(l, n), m.half, bf16);
      const auto one = l.head_dim == 64 ? attend<T, 64> : l.head_dim == 128 ? attend<T, 128> : attend<T, 0>;
      one(cache(index, l), l, pages(n), p.positions[n], q, first, last, m.attended + (size_t)row * width, own.pages, bf16);
      const int seen = l.window && p.positions[n] + 1 > l.window ? l.window : p.positions[n] + 1;
      own.kv_bytes += 2.0 * seen * l.head_dim * sizeof(T) * (last - first) / group;
      i += last - first;
    }
    m.pool.barrier();
    pack(own.a.view, m.attended, nullptr, kept, width, l.o.kind);
    multiply(l.o, own.a.view, m.update);
    expect(l.gate);
    m.pool.barrier();
    for (int i = 0; i < kept; ++i) join(m.update + (size_t)i * D, l.after_attn, own.kept[i], 1.0f);
  }

  // x of token n += weight * update, normed first where the model does.
  void join(const float* update, const NormSpec& norm, int n, float weight) {
    if (norm.weight) {
      rms_norm(update, D, norm, bf16, own.z + (size_t)n * D);
      update = own.z + (size_t)n * D;
    }
    add(own.x + (size_t)n * D, update, D, weight, bf16);
  }

  void mlp(const LayerSpec& l, const Mat& next) {
    const int kept = own.kept.size(), skipped = l.adapter_gate.data ? own.skipped.size() : 0;
    for (int n = 0; n < N; ++n) rms_norm(own.x + (size_t)n * D, D, l.before_mlp, bf16, own.z + (size_t)n * D);
    if (kept) open(l.gate, l.up, own.a.view, own.kept.data(), kept, m.gate, m.up, l.gelu);
    if (skipped) open(l.adapter_gate, l.adapter_up, own.b.view, own.skipped.data(), skipped, m.adapter_gate, m.adapter_up, false);
    expect(kept ? l.down : l.adapter_down);
    m.pool.barrier();
    if (kept) {
      pack(own.a.view, m.gate, nullptr, kept, l.down.cols, l.down.kind);
      multiply(l.down, own.a.view, m.update);
    }
    if (skipped) {
      pack(own.b.view, m.adapter_gate, nullptr, skipped, l.adapter_down.cols, l.adapter_down.kind);
      multiply(l.adapter_down, own.b.view, m.bypass);
    }
    expect(next);
    m.pool.barrier();
    for (int i = 0; i < kept; ++i) join(m.update + (size_t)i * D, l.after_mlp, own.kept[i], own.run[own.kept[i]]);
    for (int i = 0; i < skipped; ++i) join(m.bypass + (size_t)i * D, {}, own.skipped[i], own.skip[own.skipped[i]]);
  }

  // gate = act(gate x) * (up x), each thread on its own rows.
  void open(const Mat& gate, const Mat& up, Packed& x, const int* rows, int tokens, float* a, float* b, bool gelu) {
    pack(x, own.z, rows, tokens, D, gate.kind);
    multiply(gate, x, a);
    multiply(up, x, b);
    const Share s = share(gate.rows, 16);
    for (int i = 0; i < tokens; ++i) {
      const size_t at = (size_t)i * gate.rows + s.begin;
      gated(a + at, b + at, s.end - s.begin, gelu, bf16);
    }
  }

  Model& m;
  PassSpec& p;
  const int t;
  Own& own;
  const int N, D;
  const bool bf16;
};
