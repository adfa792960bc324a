// What a thread does with vectors and matrices in a pass of a few tokens, whatever the type of the cache.
#pragma once
#include "model.h"
#include "shares.h"

class PassBlocks {
 protected:
  PassBlocks(Model& model, PassSpec& pass, int thread)
      : m(model), p(pass), t(thread), own(*model.own[thread]), s(own.steps), N(pass.tokens), D(model.spec.dim),
        bf16(model.spec.bf16) {}

  static constexpr int NOT_PACKED = -1;

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
    const float scale = m.spec.embed_scale;
    for (int n = 0; n < N; ++n) {
      float* x = own.x + (size_t)n * D;
      if (in_blocks(m.spec.embed.kind)) {
        entries_in_blocks(m.spec.embed, p.ids[n], scale, bf16, x);
        continue;
      }
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
      const int rope = i / N, n = i % N;
      angles(frequencies(m, p, rope, n), m.rope_scaling[rope], p.positions[n], m.half, bf16 && !m.spec.exact_ropes,
             m.cos_sin + (size_t)i * 2 * m.half);
    }
    m.pool.barrier();
  }

  // Of `count` tokens; rows null: of the first.
  void norm(const NormSpec& by, const int* rows, int count) {
    for (int i = 0; i < count; ++i) {
      const size_t at = (size_t)(rows ? rows[i] : i) * D;
      rms_norm(own.x + at, D, by, bf16, own.z + at);
    }
  }

  // What attention or the MLP gets.
  void take(const LayerSpec& l, const NormSpec& by, const int* rows, int count) {
    if (!l.bare) return norm(by, rows, count);
    for (int i = 0; i < count; ++i) {
      const size_t at = (size_t)(rows ? rows[i] : i) * D;
      memcpy(own.z + at, own.x + at, sizeof(float) * D);
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
      shape_logits(logits, router.look, m.spec);
      readout(logits, router.look, codes + (size_t)i * 2);
    }
    m.pool.barrier();
    answer(router, step, rows, count, codes);
  }

  static const Mat& first(const LayerSpec& l) { return l.branch.router.first.data ? l.branch.router.first : l.k; }

  // Rows of q or k as they are, where the model norms them so; the threads meet.
  void norm_whole(const LayerSpec& l, const NormSpec& by, float* x, int rows, int width) {
    if (!l.wide || !by.weight) return;
    const Share mine = share(rows, 1);
    for (int i = mine.begin; i < mine.end; ++i) rms_norm(x + (size_t)i * width, width, by, bf16, x + (size_t)i * width);
    m.pool.barrier();
  }

  // x of token n += weight * update, normed first where the model does.
  void join(const LayerSpec& l, const float* update, const NormSpec& norm, int n, float weight) {
    if (norm.weight) {
      rms_norm(update, D, norm, bf16, own.z + (size_t)n * D);
      update = own.z + (size_t)n * D;
    }
    add(own.x + (size_t)n * D, update, D, rounded(weight, bf16) * l.residual, bf16);
  }

  void mlp(const LayerSpec& l, const Mat& next) {
    const int kept = s.kept.size(), skipped = l.adapter_gate.data ? s.skipped.size() : 0;
    take(l, l.before_mlp, s.kept.data(), kept);
    norm(l.before_mlp, s.skipped.data(), skipped);
    if (kept) open(l.gate, l.up, own.a.view, s.kept.data(), kept, m.gate, m.up, l.act);
    if (skipped) open(l.adapter_gate, l.adapter_up, own.b.view, s.skipped.data(), skipped, m.adapter_gate, m.adapter_up, ACT_SILU);
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
      join(l, m.update + (size_t)i * D, l.after_mlp, n, l.whole ? 1.0f : s.run[n]);
      float *x = own.x + (size_t)n * D, *before = own.before + (size_t)n * D;
      for (int j = 0; l.whole && s.run[n] != 1.0f && j < D; ++j) x[j] = between(before[j], x[j], s.run[n], bf16);
    }
    for (int i = 0; i < skipped; ++i) join(l, m.bypass + (size_t)i * D, {}, s.skipped[i], s.skip[s.skipped[i]]);
  }

  // gate = act(gate x) * (up x), each thread on its own rows.
  void open(const Mat& gate, const Mat& up, Packed& x, const int* rows, int tokens, float* a, float* b, int act) {
    pack(x, own.z, rows, tokens, D, gate.kind);
    multiply(gate, x, a);
    if (up.data) multiply(up, x, b);
    const Share mine = share(gate.rows, 16);
    for (int i = 0; i < tokens; ++i) {
      const size_t at = (size_t)i * gate.rows + mine.begin;
      gated(a + at, up.data ? b + at : nullptr, mine.end - mine.begin, act, bf16);
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
