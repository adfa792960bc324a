// The logits of the tokens that are asked for, and the likeliest of each.
#pragma once
#include "model.h"
#include "shares.h"

// `count` logits of the asked token i from `row` on: written down, and the likeliest kept.
__attribute__((noinline)) static void settle(const Model& m, PassSpec& p, Own& own, int i, int row, int count, float* logits) {
  shape_logits(logits, count, m.spec);
  if (p.logits) memcpy(p.logits + (size_t)i * m.spec.head.rows + row, logits, sizeof(float) * count);
  if (!p.argmax) return;
  float broken = 0;  // 0, or NaN where a logit is not finite
#pragma omp simd reduction(+ : broken)
  for (int j = 0; j < count; ++j) broken += logits[j] * 0.0f;
  if (broken != broken) own.best[i] = NAN;  // which nothing exceeds
  for (int j = 0; j < count; ++j)
    if (logits[j] > own.best[i] || (logits[j] == own.best[i] && row + j < own.best_id[i])) {  // of equals the first
      own.best[i] = logits[j];
      own.best_id[i] = row + j;
    }
}

// Every thread for its rows of the matrix; own.x: the tokens, [.., dim].
static void head(Model& m, PassSpec& p, Own& own, int t) {
  const int D = m.spec.dim;
  const bool bf16 = m.spec.bf16;
  const int asked = p.asked_count;
  for (int i = 0; i < asked; ++i)
    rms_norm(own.x + (size_t)p.asked[i] * D, D, m.spec.norm, bf16, own.z + (size_t)i * D);
  const Mat& w = m.spec.head;
  pack(own.a.view, own.z, nullptr, asked, D, w.kind);
  for (int i = 0; i < asked; ++i) {
    own.best[i] = -INFINITY;
    own.best_id[i] = 0;
  }
  const Share s = even(w.rows, 16, m.pool.size(), t);
  for (int row = s.begin; row < s.end;) {
    const Runs runs = runs_of(w, own.a.view, row, s.end);
    const int most = LOGITS / runs.count;
    for (int from = 0; from < runs.step; from += most) {
      const int count = runs.step - from < most ? runs.step - from : most;
      linear_runs(w, own.a.view, runs, from, from + count, own.logits, count, LOGITS, false);
      for (int i = 0; i < asked; ++i)
        for (int r = 0; r < runs.count; ++r)
          settle(m, p, own, i, row + r * runs.step + from, count, own.logits + (size_t)i * LOGITS + r * count);
    }
    row += runs.count * runs.step;
  }
  own.weight_bytes += (s.end - s.begin) * row_bytes(w);
  m.pool.barrier();
  const Share mine = even(asked, 1, m.pool.size(), t);
  for (int i = mine.begin; p.argmax && i < mine.end; ++i) {
    int best = 0;
    bool finite = true;
    for (int thread = 0; thread < m.pool.size(); ++thread) {
      const float here = m.own[thread]->best[i];
      finite = finite && here == here && here < INFINITY;  // -inf: a thread without rows
      if (here > m.own[best]->best[i]) best = thread;
    }
    p.argmax[i] = finite && m.own[best]->best[i] > -INFINITY ? m.own[best]->best_id[i] : -1;
  }
}
