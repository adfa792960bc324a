// One pass of many tokens through the whole model. A thread takes tokens, not rows of weights: K, V and the decision of
// its share of all tokens, then the layer for its share of those that are kept and the adapter for those that are not. It
// meets the others twice in a layer.
#pragma once
#include "prefill_blocks.h"

class Prefill : PrefillBlocks {
 public:
  Prefill(Model& model, PrefillMemory& memory, PassSpec& pass, int thread) : PrefillBlocks(model, memory, pass, thread) {}

  int steps(int first, int last) {
    own.padded = 0;
    own.kv_bytes = 0;
    const bool on = first > 0 || p.resumed;
    st.begin(m, p, on, t == 0);
    begin(on);
    m.pool.barrier();
    const int stood = st.go(*this, first, last);
    if (stood != END) leave(stood);
    else if (p.asked_count && p.logits) head();
    return stood;
  }

  // A visit, or its attention, for who runs it; K and V of who does not.
  void attend(const LayerSpec& plain) {
    const LayerSpec& l = s.layers[&plain - m.layers.data()];
    const bool asks = st.asks(l.branch), dense = asks && !l.branch.router.look;
    if (asks && !dense) look(l.branch.router, l.step);
    if (!l.nothing) {
      blocks(share(N, amx::LANES), [&](int at, int count) {
        take(l.before_attn, nullptr, at, count);
        if (dense) ask(l.branch.router);
        project(l, own.rows.data(), count);
      });
      m.pool.barrier();
      decide(l, l.branch, l.step);
    } else {
      if (dense) {
        blocks(share(st.here.size(), amx::LANES), [&](int at, int count) {
          take(l.before_attn, st.here.data(), at, count);
          ask(l.branch.router);
        });
        m.pool.barrier();
      }
      decide(l, l.branch, l.step);
      blocks(share(st.kept.size(), amx::LANES), [&](int at, int count) {
        take(l.before_attn, st.kept.data(), at, count);
        project(l, st.kept.data() + at, count);
      });
      if (t == 0 && p.held) hold(p, l, st);
      m.pool.barrier();
    }
    if (t == 0) {
      if (dense) p.weight_bytes += bytes_of({&plain.branch.router.first});
      if (!l.nothing || !st.kept.empty()) p.weight_bytes += bytes_of({&plain.k, &plain.v});
      if (!st.kept.empty()) p.weight_bytes += bytes_of({&plain.q, &plain.o});
    }
    blocks(heavy(l), [&](int at, int count) { run(l, st.kept.data() + at, count, true, !l.halves); });
    if (l.halves) m.pool.barrier();
  }

  // The MLP, where it is decided on its own, and what goes around it.
  void feed(const LayerSpec& plain, bool apart) {
    const LayerSpec& l = s.layers[&plain - m.layers.data()];
    if (apart) {
      const RouterSpec& router = l.mlp_branch.router;
      const bool asks = st.asks(l.mlp_branch);
      if (asks && router.look) {
        look(router, l.step + 1);
      } else if (asks) {
        blocks(share(st.here.size(), amx::LANES), [&](int at, int count) {
          take(l.before_mlp, st.here.data(), at, count);
          ask(router);
        });
        if (t == 0) p.weight_bytes += bytes_of({&plain.mlp_branch.router.first});
        m.pool.barrier();
      }
      decide(l, l.mlp_branch, l.step + 1);
      blocks(share(st.kept.size(), amx::LANES), [&](int at, int count) { run(l, st.kept.data() + at, count, false, true); });
    }
    if (t == 0 && !st.kept.empty()) p.weight_bytes += bytes_of({&plain.gate, &plain.up, &plain.down});
    if (t == 0 && !st.skipped.empty()) p.weight_bytes += bytes_of({&plain.adapter_gate, &plain.adapter_up, &plain.adapter_down});
    if (l.adapter_gate.data)
      blocks(share(st.skipped.size(), amx::LANES), [&](int at, int count) { pass_by(l, st.skipped.data() + at, count); });
    m.pool.barrier();
  }

 private:
  Share share(int count, int unit) const { return even(count, unit, m.pool.size(), t); }

  // This thread's part of the kept tokens.
  Share heavy(const LayerSpec& l) const {
    const double width = l.heads * l.head_dim, fixed = D * (2 * width + 3.0 * l.gate.rows);
    return by_work(st.kept.size(), m.pool.size(), t, [&](int i) {
      const int seen = p.positions[st.kept[i]] + 1;
      return fixed + 6 * width * (l.window ? std::min(seen, l.window) : seen);  // a key costs more than its products
    });
  }

  // resumed: the stream is the caller's.
  void begin(bool resumed) {
    const Mat& table = m.spec.embed;
    const float scale = m.spec.embed_scale;
    const Share mine = share(N, 1);
    if (t == 0 && !resumed) p.weight_bytes += N * row_bytes(table);
    for (int n = mine.begin; n < mine.end; ++n) {
      uint16_t* x = s.x + (size_t)n * D;
      for (int i = 0; i < D; ++i)
        x[i] = to_bf16(resumed ? p.x[(size_t)n * D + i] : entry(table, p.ids[n], i, true) * scale);
      for (int rope = 0; rope < m.spec.ropes; ++rope)
        angles(frequencies(m, p, rope, n), m.rope_scaling[rope], p.positions[n], m.half, true, angle(rope, n));
    }
  }

  // For the caller: the stream, and what the unit of this step would see of it.
  void leave(int step) {
    const LayerSpec& l = m.layers[m.visit_of[step]];
    blocks(share(N, amx::LANES), [&](int at, int count) {
      take(step == l.step ? l.before_attn : l.before_mlp, nullptr, at, count);
      for (const Panel* from : {&own.x, &own.z})
        amx::scatter(*from, 0, D, count, [&](int i, int c, __m512i v) {
          float* to = (from == &own.x ? p.x : p.z) + (size_t)(at + i) * D + c;
          for (const int half : {0, 1}) {
            const __m256i part = half ? _mm512_extracti64x4_epi64(v, 1) : _mm512_castsi512_si256(v);
            _mm512_storeu_ps(to + half * 16, _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(part), 16)));
          }
        });
    });
    st.leave();
  }

  // What it says of the tokens that look at the head's opinion of them.
  void look(const RouterSpec& router, int step) {
    const int count = st.asking(step);
    blocks(share(count, amx::LANES), [&](int at, int some) {
      take(m.spec.norm, st.some.data(), at, some);
      amx::Readout found[MOST_GROUPS];
      int seen[MOST_GROUPS] = {};  // rows that are not whole tiles come twice
      amx::product(m.spec.head, own.z, groups(some), 0, router.look, own.scratch, [&](int row, int g, const float* sums) {
        __m512 v[16];
        for (int r = 0; r < amx::TILE; ++r) v[r] = logits(row, sums, r);
        found[g].take(v + (seen[g] - row), row + amx::TILE - seen[g]);
        seen[g] = row + amx::TILE;
      });
      for (int g = 0; g < groups(some); ++g) {
        found[g].code(own.codes);
        answer(router, own.codes, g);
      }
    });
    if (t == 0) {
      p.weight_bytes += router.look * row_bytes(m.spec.head);
      p.looks += count;
    }
    m.pool.barrier();
  }

  // As in every pass; each thread for all tokens.
  void decide(const LayerSpec& l, const BranchSpec& branch, int step) {
    if (branch.by == BY_OPS) std::copy(s.numbers + 0, s.numbers + N, st.number.begin());
    st.decide(l, branch, step);
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
        for (int r = 0; r < amx::TILE; ++r) v[r] = logits(row, sums, r);
        const int first = at + g * amx::LANES;
        amx::spread(v, nullptr, 0, std::min(amx::LANES, at + count - first), p.logits + (size_t)first * w.rows + row, 1, w.rows,
                    false);
      });
    });
  }
};
