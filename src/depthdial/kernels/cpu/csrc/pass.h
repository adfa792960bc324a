// One pass of a few tokens through the model. Every thread runs `Pass::steps`: it takes its share of the rows of each
// matrix and of the attention heads, and meets the others at barriers.
#pragma once
#include "head.h"
#include "pass_blocks.h"

template <class T>
class Pass : PassBlocks {
 public:
  Pass(Model& model, PassSpec& pass, int thread) : PassBlocks(model, pass, thread) {}

  // Returns the step that the pass stands at, END past the last.
  int steps(int first, int last) {
    own.weight_bytes = 0;
    own.kv_bytes = 0;
    for (Packed* x : {&own.a.view, &own.b.view}) {
      x->width = N < 16 ? N : 16;
      x->near = own.near;
      x->near_kind = !p.reading ? INT8 : bf16 && sizeof(isa::Half) == 2 ? BF16 : FP32;
    }
    const bool on = first > 0 || p.resumed;
    s.begin(m, p, on, t == 0);
    if (on) memcpy(own.x, p.x, sizeof(float) * N * D);
    else embed();
    turns();
    const int stood = s.go(*this, first, last);
    if (stood == END) {
      if (p.asked_count && (p.logits || p.argmax)) head(m, p, own, t);
    } else {
      leave(stood);
    }
    return stood;
  }

  // Attention of a visit for who runs it, K and V of who does not.
  void attend(const LayerSpec& l) {
    const BranchSpec& branch = l.branch;
    const bool asks = s.asks(branch), dense = asks && !branch.router.look;
    if (asks && !dense) look(branch.router, l.step);
    const bool all = !l.nothing || (int)s.here.size() == N;
    const int *rows = all ? nullptr : s.here.data(), count = all ? N : s.here.size();
    float* codes = m.code[own.asked & 1];
    if (dense && l.bare) {
      norm(l.before_attn, rows, count);
      ask(branch.router, rows, count, NOT_PACKED, codes);
    }
    take(l, l.before_attn, rows, count);
    if (dense || !l.nothing) pack(own.a.view, own.z, rows, count, D, l.k.kind);
    if (dense && !l.bare) ask(branch.router, rows, count, l.k.kind, codes);
    const int side = own.projected++ & 1;
    const bool later = dense && !l.nothing;  // the decision comes with K and V, at the barrier
    if (dense && !later) {
      m.pool.barrier();
      answer(branch.router, l.step, rows, count, codes);
    }
    if (!later) s.decide(l, branch, l.step);
    if (l.nothing) pack(own.a.view, own.z, s.kept.data(), s.kept.size(), D, l.k.kind);
    multiply(l.k, own.a.view, m.k[side]);
    multiply(l.v, own.a.view, m.v[side]);
    if (later) expect(l.q);
    else queries(l);
    m.pool.barrier();
    if (later) {
      answer(branch.router, l.step, rows, count, codes);
      s.decide(l, branch, l.step);
      queries(l);
    }
    write(l, side);
    for (const int n : s.kept)
      if (l.whole && s.run[n] != 1.0f) memcpy(own.before + (size_t)n * D, own.x + (size_t)n * D, sizeof(float) * D);
    if (!s.kept.empty()) attention(l);
  }

  // What follows attention. apart: it is decided on its own.
  void feed(const LayerSpec& l, bool apart) {
    const Mat& next = &l == &m.layers.back() ? m.spec.head : first(*(&l + 1));
    if (apart) {
      const BranchSpec& branch = l.mlp_branch;
      const int *rows = s.here.data(), count = s.here.size();
      const bool asks = s.asks(branch);
      if (asks && branch.router.look) look(branch.router, l.step + 1);
      else if (asks) {
        float* codes = m.code[own.asked & 1];
        norm(l.before_mlp, rows, count);
        pack(own.a.view, own.z, rows, count, D, branch.router.first.kind);
        ask(branch.router, rows, count, branch.router.first.kind, codes);
        expect(l.gate);
        m.pool.barrier();
        answer(branch.router, l.step + 1, rows, count, codes);
      }
      s.decide(l, branch, l.step + 1);
    }
    if (s.kept.empty() && (s.skipped.empty() || !l.adapter_gate.data)) expect(next);
    else mlp(l, next);
  }

 private:
  // For the caller: the stream, and what this step would see of it.
  void leave(int step) {
    if (t != 0) return;
    const LayerSpec& l = m.layers[m.visit_of[step]];
    norm(step == l.step ? l.before_attn : l.before_mlp, nullptr, N);
    if (p.x) memcpy(p.x, own.x, sizeof(float) * N * D);
    if (p.z) memcpy(p.z, own.z, sizeof(float) * N * D);
    s.leave();
  }

  // Row i of m.q belongs to the i-th kept token.
  void queries(const LayerSpec& l) {
    const int kept = s.kept.size();
    const bool same = (kept == N || l.nothing) && form(l.q.kind) == form(l.k.kind);
    if (!same) pack(own.b.view, own.z, s.kept.data(), kept, D, l.q.kind);
    multiply(l.q, same ? own.a.view : own.b.view, m.q);
  }

  Cache<T> cache(const LayerSpec& l) const { return {(T*)p.k_cache, (T*)p.v_cache, l.kv_heads, l.head_dim}; }

  const int32_t* pages(const LayerSpec& l, int n) const {
    return p.page_table + l.cache * p.cache_stride + (size_t)p.sequences[n] * p.table_stride;
  }

  const float* turn(const LayerSpec& l, int n) const { return m.cos_sin + ((size_t)l.rope * N + n) * 2 * m.half; }

  void write(const LayerSpec& l, int side) {
    const int rows = l.nothing ? s.kept.size() : N;
    norm_whole(l, l.k_norm, m.k[side], rows, l.kv_heads * l.head_dim);
    const Share mine = share(rows * l.kv_heads, 1);
    for (int i = mine.begin; i < mine.end; ++i) {
      const int n = l.nothing ? s.kept[i / l.kv_heads] : i / l.kv_heads, head = i % l.kv_heads;
      const size_t at = (size_t)i * l.head_dim;
      norm_and_rotate(m.k[side] + at, l, l.k_norm, turn(l, n), bf16, m.spec.exact_ropes);
      cache(l).write(pages(l, n)[p.positions[n] / PAGE], head, p.positions[n] % PAGE, m.k[side] + at, m.v[side] + at);
    }
    if (t == 0 && l.nothing && p.held) hold(p, l, s);
  }

  void attention(const LayerSpec& l) {
    expect(l.o);
    m.pool.barrier();
    const int kept = s.kept.size(), group = l.heads / l.kv_heads, width = l.heads * l.head_dim;
    norm_whole(l, l.q_norm, m.q, kept, width);
    const uint8_t* held = l.nothing ? p.held : nullptr;
    const Share mine = share(kept * l.heads, 1);
    for (int i = mine.begin; i < mine.end;) {
      const int row = i / l.heads, first = i % l.heads, n = s.kept[row];
      int last = (first / group + 1) * group;
      if (last - first > mine.end - i) last = first + mine.end - i;
      float* q = m.q + (size_t)row * width;
      for (int h = first; h < last; ++h)
        norm_and_rotate(q + (size_t)h * l.head_dim, l, l.q_norm, turn(l, n), bf16, m.spec.exact_ropes);
      if (p.query_scale) {
        const float scale = rounded(p.query_scale[n], bf16);
        for (int j = first * l.head_dim; j < last * l.head_dim; ++j) q[j] = rounded(q[j] * scale, bf16);
      }
      const auto over = l.head_dim == 64 ? ::attend<T, 64> : l.head_dim == 128 ? ::attend<T, 128> : ::attend<T, 0>;
      const int seen = over(cache(l), l, pages(l, n), held, p.positions[n], q, first, last,
                            m.attended + (size_t)row * width, own.pages, bf16);
      own.kv_bytes += 2.0 * seen * l.head_dim * sizeof(T) * (last - first) / group;
      i += last - first;
    }
    m.pool.barrier();
    pack(own.a.view, m.attended, nullptr, kept, width, l.o.kind);
    multiply(l.o, own.a.view, m.update);
    expect(l.gate);
    m.pool.barrier();
    for (int i = 0; i < kept; ++i) join(l, m.update + (size_t)i * D, l.after_attn, s.kept[i], l.halves ? s.run[s.kept[i]] : 1);
  }
};
