// One pass of a few tokens through the model. Every thread runs `Pass::steps`: it takes its share of the rows of each
// matrix and of the attention heads, and meets the others at barriers.
#pragma once
#include "head.h"
#include "model.h"

template <class T>
class Pass {
 public:
  Pass(Model& model, PassSpec& pass, int thread)
      : m(model), p(pass), t(thread), own(*model.own[thread]), s(own.steps), N(pass.tokens), D(model.spec.dim),
        bf16(model.spec.bf16) {}

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
    norm(l.before_attn, rows, count);
    if (dense || !l.nothing) pack(own.a.view, own.z, rows, count, D, l.k.kind);
    float* codes = m.code[own.asked & 1];
    if (dense) ask(branch.router, rows, count, l.k.kind, codes);
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
  Share share(int count, int unit) const { return even(count, unit, m.pool.size(), t); }

  void multiply(const Mat& w, const Packed& x, float* out, bool wide = false) {
    if (x.tokens == 0) return;
    const Share mine = share(w.rows, 16);
    own.weight_bytes += linear_rows(w, x, mine.begin, mine.end, out, w.rows, bf16 && !wide);
  }

  // Starts to read what this thread needs of w after the next barrier.
  void expect(const Mat& w) const {
    if (w.data) fetch(w, share(w.rows, 16).begin, share(w.rows, 16).end);
  }

  void embed() {
    const float scale = rounded(m.spec.embed_scale, bf16);
    for (int n = 0; n < N; ++n) {
      float* x = own.x + (size_t)n * D;
      for (int i = 0; i < D; ++i) {
        x[i] = entry(m.spec.embed, p.ids[n], i, bf16);
        if (scale != 1.0f) x[i] = rounded(x[i] * scale, bf16);
      }
    }
    if (t == 0) own.weight_bytes += N * row_bytes(m.spec.embed);
  }

  void turns() {
    const Share mine = share(m.spec.ropes * N, 1);
    for (int i = mine.begin; i < mine.end; ++i) {
      const int rope = i / N;
      angles(m.inv_freq.data() + rope * m.half, m.rope_scaling[rope], p.positions[i % N], m.half, bf16,
             m.cos_sin + (size_t)i * 2 * m.half);
    }
    m.pool.barrier();
  }

  // For the caller: the stream, and what this step would see of it.
  void leave(int step) {
    if (t != 0) return;
    const LayerSpec& l = m.layers[m.visit_of[step]];
    norm(step == l.step ? l.before_attn : l.before_mlp, nullptr, N);
    if (p.x) memcpy(p.x, own.x, sizeof(float) * N * D);
    if (p.z) memcpy(p.z, own.z, sizeof(float) * N * D);
    s.leave();
  }

  // Of `count` tokens; rows null: of the first.
  void norm(const NormSpec& by, const int* rows, int count) {
    for (int i = 0; i < count; ++i) {
      const size_t at = (size_t)(rows ? rows[i] : i) * D;
      rms_norm(own.x + at, D, by, bf16, own.z + at);
    }
  }

  // The first product of a router; own.a.view has the tokens as `packed`, or they are packed for it.
  void ask(const RouterSpec& router, const int* rows, int count, int packed, float* codes) {
    ++own.asked;
    if (router.first.kind != packed) pack(own.b.view, own.z, rows, count, D, router.first.kind);
    multiply(router.first, router.first.kind != packed ? own.b.view : own.a.view, codes, router.wide);
  }

  // What the router says of each token that is asked, from the codes of `rows`.
  void answer(const RouterSpec& router, int step, const int* rows, int count, const float* codes) {
    const int width = router.look ? 2 : router.first.rows;
    for (int i = 0; i < count; ++i) {
      const int n = rows ? rows[i] : i;
      if (!s.asked(n, step)) continue;
      memcpy(own.code, codes + (size_t)i * width, sizeof(float) * width);
      s.number[n] = number_of(own.code, own.code + m.rank, router) + p.offsets[n];
    }
  }

  // The head's opinion of the tokens that are asked; each of them is read by one thread, whoever shares the pass.
  void look(const RouterSpec& router, int step) {
    const int count = s.asking(step);
    const int* rows = s.some.data();
    norm(m.spec.norm, rows, count);
    pack(own.b.view, own.z, rows, count, D, m.spec.head.kind);
    const Share mine = share(router.look, 16);
    own.weight_bytes += linear_rows(m.spec.head, own.b.view, mine.begin, mine.end, m.looks, router.look, false);
    if (t == 0) p.looks += count;
    m.pool.barrier();
    float* codes = m.code[own.asked++ & 1];
    const Share tokens = share(count, 1);
    for (int i = tokens.begin; i < tokens.end; ++i) {
      float* logits = m.looks + (size_t)i * router.look;
      if (m.spec.softcap > 0)
        for (int j = 0; j < router.look; ++j) logits[j] = tanh_of(logits[j] / m.spec.softcap) * m.spec.softcap;
      readout(logits, router.look, codes + (size_t)i * 2);
    }
    m.pool.barrier();
    answer(router, step, rows, count, codes);
  }

  static const Mat& first(const LayerSpec& l) { return l.branch.router.first.data ? l.branch.router.first : l.k; }

  // Row i of m.q belongs to the i-th kept token.
  void queries(const LayerSpec& l) {
    const int kept = s.kept.size();
    const bool same = (kept == N || l.nothing) && l.q.kind == l.k.kind;
    if (!same) pack(own.b.view, own.z, s.kept.data(), kept, D, l.q.kind);
    multiply(l.q, same ? own.a.view : own.b.view, m.q);
  }

  Cache<T> cache(const LayerSpec& l) const { return {(T*)p.k_cache, (T*)p.v_cache, l.kv_heads, l.head_dim}; }

  const int32_t* pages(const LayerSpec& l, int n) const {
    return p.page_table + l.cache * p.cache_stride + (size_t)p.sequences[n] * p.table_stride;
  }

  const float* turn(const LayerSpec& l, int n) const { return m.cos_sin + ((size_t)l.rope * N + n) * 2 * m.half; }

  void write(const LayerSpec& l, int side) {
    const Share mine = share((l.nothing ? s.kept.size() : N) * l.kv_heads, 1);
    for (int i = mine.begin; i < mine.end; ++i) {
      const int n = l.nothing ? s.kept[i / l.kv_heads] : i / l.kv_heads, head = i % l.kv_heads;
      const size_t at = (size_t)i * l.head_dim;
      norm_and_rotate(m.k[side] + at, l.k_norm, turn(l, n), m.half, bf16);
      cache(l).write(pages(l, n)[p.positions[n] / PAGE], head, p.positions[n] % PAGE, m.k[side] + at, m.v[side] + at);
    }
    if (t == 0 && l.nothing && p.held) hold(p, l, s);
  }

  void attention(const LayerSpec& l) {
    expect(l.o);
    m.pool.barrier();
    const int kept = s.kept.size(), group = l.heads / l.kv_heads, width = l.heads * l.head_dim;
    const uint8_t* held = l.nothing ? p.held : nullptr;
    const Share mine = share(kept * l.heads, 1);
    for (int i = mine.begin; i < mine.end;) {
      const int row = i / l.heads, first = i % l.heads, n = s.kept[row];
      int last = (first / group + 1) * group;
      if (last - first > mine.end - i) last = first + mine.end - i;
      float* q = m.q + (size_t)row * width;
      for (int h = first; h < last; ++h)
        norm_and_rotate(q + (size_t)h * l.head_dim, l.q_norm, turn(l, n), m.half, bf16);
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
    for (int i = 0; i < kept; ++i) join(m.update + (size_t)i * D, l.after_attn, s.kept[i], l.halves ? s.run[s.kept[i]] : 1);
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
    const int kept = s.kept.size(), skipped = l.adapter_gate.data ? s.skipped.size() : 0;
    norm(l.before_mlp, s.kept.data(), kept);
    norm(l.before_mlp, s.skipped.data(), skipped);
    if (kept) open(l.gate, l.up, own.a.view, s.kept.data(), kept, m.gate, m.up, l.gelu);
    if (skipped) open(l.adapter_gate, l.adapter_up, own.b.view, s.skipped.data(), skipped, m.adapter_gate, m.adapter_up, false);
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
    for (int i = 0; i < kept; ++i) {
      const int n = s.kept[i];
      join(m.update + (size_t)i * D, l.after_mlp, n, l.whole ? 1.0f : s.run[n]);
      float *x = own.x + (size_t)n * D, *before = own.before + (size_t)n * D;
      for (int j = 0; l.whole && s.run[n] != 1.0f && j < D; ++j) x[j] = between(before[j], x[j], s.run[n], bf16);
    }
    for (int i = 0; i < skipped; ++i) join(m.bypass + (size_t)i * D, {}, s.skipped[i], s.skip[s.skipped[i]]);
  }

  // gate = act(gate x) * (up x), each thread on its own rows.
  void open(const Mat& gate, const Mat& up, Packed& x, const int* rows, int tokens, float* a, float* b, bool gelu) {
    pack(x, own.z, rows, tokens, D, gate.kind);
    multiply(gate, x, a);
    multiply(up, x, b);
    const Share mine = share(gate.rows, 16);
    for (int i = 0; i < tokens; ++i) {
      const size_t at = (size_t)i * gate.rows + mine.begin;
      gated(a + at, b + at, mine.end - mine.begin, gelu, bf16);
    }
  }

  Model& m;
  PassSpec& p;
  const int t;
  Own& own;
  Steps& s;
  const int N, D;
  const bool bf16;
};
