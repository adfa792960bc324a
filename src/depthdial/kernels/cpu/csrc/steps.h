// Where each token of a pass goes: who waits at a step, what is decided there, and what was done. Every thread keeps these
// books for itself, for all tokens; the first one writes them down. The order of steps is the same in every kind of pass.
#pragma once
#include <cmath>
#include <cstring>
#include <vector>

#include "attention.h"

// The visits of a model, and what of them concerns the steps.
struct Visits {
  std::vector<LayerSpec> layers;
  std::vector<int> visit_of;      // by step
  std::vector<uint8_t> projects;  // by visit: does it or one after it take K and V of tokens that do not run it?
  bool jumps = false, stops = false;

  explicit Visits(const ModelSpec& spec) : layers(spec.layers, spec.layers + spec.count), projects(spec.count) {
    for (int visit = 0; visit < spec.count; ++visit) {
      const LayerSpec& l = layers[visit];
      for (const BranchSpec* branch : {&l.branch, &l.mlp_branch}) {
        if (branch == &l.mlp_branch && !l.halves) continue;
        const int next = visit_of.size() + 1;
        jumps = jumps || branch->then != next || branch->otherwise != next;
        stops = stops || branch->by == OPEN;
        visit_of.push_back(visit);
      }
    }
    bool later = false;
    for (int visit = spec.count - 1; visit >= 0; --visit) projects[visit] = later = later || !layers[visit].nothing;
  }

  int steps() const { return visit_of.size(); }
};

// Whether a token has left K and V at a visit where not all do.
static inline void mark(const PassSpec& p, const LayerSpec& l, int n, uint8_t there) {
  const int place = p.positions[n];
  const int32_t page = p.page_table[l.cache * p.cache_stride + p.sequences[n] * p.table_stride + place / PAGE];
  if (page >= 0) p.held[(size_t)page * PAGE + place % PAGE] = there;
}

class Steps {
 public:
  std::vector<int> here, kept, skipped, some;  // of the tokens that wait at a step
  std::vector<float> run, skip, number;  // by token: weights, and what a router says, its offset added

  // on: the pass goes on where it stood. writes: on one thread.
  void begin(const Visits& visits, PassSpec& pass, bool on, bool writes) {
    m = &visits;
    p = &pass;
    N = pass.tokens;
    writes_ = writes;
    at.assign(N, 0);
    if (on) at.assign(pass.at, pass.at + N);
    for (std::vector<float>* of : {&run, &skip, &number}) of->assign(N, 1.0f);
  }

  // Goes through steps first.. to `last`, to the first one that the caller has to decide, or to the end; returns where it
  // stands, END past the last. Work: the pass itself, which runs a visit or the parts of one.
  template <class Work>
  int go(Work& work, int first, int last) {
    bool decided = p->resumed;
    for (int visit = m->visit_of[first]; visit < (int)m->layers.size(); ++visit) {
      const LayerSpec& l = m->layers[visit];
      if (first <= l.step) {
        if (l.step >= last) return last;
        if (done(visit)) break;
        wait(l.step);
        if (!decided && open(l.branch)) return l.step;
        decided = false;
        if (here.empty() && l.nothing) none(l.step);
        else work.attend(l);
        if (!l.halves) {
          if (!here.empty()) work.feed(l, false);
          count(l);
          continue;
        }
      }
      if (l.step + 1 >= last) return last;
      wait(l.step + 1);
      if (!decided && open(l.mlp_branch)) return l.step + 1;
      decided = false;
      if (here.empty()) none(l.step + 1);
      else work.feed(l, true);
      count(l);
    }
    return END;
  }

  // Does anybody wait here whom the branch's router is asked about?
  bool asks(const BranchSpec& branch) const { return branch.by == BY_OPS && free(); }

  // Lists in `some` the tokens that its router is asked about.
  int asking(int step) {
    some.clear();
    for (const int n : here)
      if (asked(n, step)) some.push_back(n);
    return some.size();
  }

  bool asked(int n, int step) const { return at[n] == step && p->offsets[n] != INFINITY; }

  // Tokens that run step `step` and those that do not, and where all of them go. Before it, `number` of those asked is set.
  void decide(const LayerSpec& l, const BranchSpec& branch, int step) {
    kept.clear();
    skipped.clear();
    for (int n = 0; n < N; ++n) {
      const size_t row = (size_t)step * N + n;
      bool keep = false;
      float score = 0;
      if (at[n] == step && p->offsets[n] == INFINITY) {
        score = keep = l.base;
        run[n] = 1.0f;
        at[n] = step + 1;
        if (keep) kept.push_back(n);
      } else if (at[n] == step) {
        run[n] = skip[n] = 1.0f;
        keep = branch.by == BY_TABLE && p->given ? p->given[row] : branch.by == OPEN ? p->keep[row] : true;
        score = keep;
        if (branch.by == BY_OPS) {
          score = sigmoid(number[n]);
          keep = number[n] > branch.router.cut;
          if (branch.router.soft) {
            run[n] = score;
            skip[n] = 1.0f - score;
          }
        } else if (branch.by == OPEN) {
          if (p->run) run[n] = p->run[n];
          if (p->skip) skip[n] = p->skip[n];
        }
        at[n] = keep ? branch.then : branch.otherwise;
        (keep ? kept : skipped).push_back(n);
      }
      if (!writes_) continue;
      p->keep[row] = keep;
      p->score[row] = score;
    }
  }

  // For the caller, who decides at `step` or looks on.
  void leave() const {
    if (writes_ && p->at) memcpy(p->at, at.data(), sizeof(int32_t) * N);
  }

 private:
  void wait(int step) {
    here.clear();
    for (int n = 0; n < N; ++n)
      if (at[n] == step) here.push_back(n);
  }

  bool free() const {
    for (const int n : here)
      if (p->offsets[n] != INFINITY) return true;
    return false;
  }

  bool open(const BranchSpec& branch) const { return branch.by == OPEN && free(); }

  // Nobody waits, and nothing has to be left in a cache: the rest of the program is not looked at.
  bool done(int visit) {
    if (!m->jumps || m->projects[visit]) return false;
    for (int n = 0; n < N; ++n)
      if (at[n] < m->steps()) return false;
    for (int step = m->layers[visit].step; step < m->steps(); ++step) none(step);
    return true;
  }

  void none(int step) {
    kept.clear();
    skipped.clear();
    if (!writes_) return;
    memset(p->keep + (size_t)step * N, 0, N);
    memset(p->score + (size_t)step * N, 0, sizeof(float) * N);
    const LayerSpec& l = m->layers[m->visit_of[step]];
    if (step != l.step || !l.nothing || !p->held) return;
    for (int n = 0; n < N; ++n) mark(*p, l, n, 0);
  }

  void count(const LayerSpec& l) {
    if (!writes_) return;
    int64_t ran = kept.size();
    if (l.halves) {
      const uint8_t *attn = p->keep + (size_t)l.step * N, *mlp = attn + N;
      ran = 0;
      for (int n = 0; n < N; ++n) ran += attn[n] | mlp[n];
    }
    p->rows_run += ran;
    p->layers_run += ran > 0;
  }

  const Visits* m = nullptr;
  PassSpec* p = nullptr;
  int N = 0;
  bool writes_ = false;
  std::vector<int> at;
};

// Who of a pass has left K and V at a visit where not all do.
static inline void hold(const PassSpec& p, const LayerSpec& l, const Steps& s) {
  for (int n = 0; n < p.tokens; ++n) mark(p, l, n, 0);
  for (const int n : s.kept) mark(p, l, n, 1);
}
