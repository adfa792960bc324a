// A model's description and the memory its passes work in: allocated once, nothing in a pass.
#pragma once
#include <cstdlib>
#include <memory>
#include <mutex>
#include <new>
#include <vector>

#include "abi.h"
#include "attention.h"
#include "linear.h"
#include "pool.h"
#include "router.h"
#include "steps.h"

template <class T>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(size_t count) {
    const size_t bytes = (count * sizeof(T) + 127) / 64 * 64;
    data_.reset(static_cast<T*>(std::aligned_alloc(64, bytes)));
    if (!data_) throw std::bad_alloc();
    memset(static_cast<void*>(data_.get()), 0, bytes);
  }
  operator T*() const { return data_.get(); }

 private:
  struct Free {
    void operator()(T* p) const { std::free(p); }
  };
  std::unique_ptr<T[], Free> data_;
};

struct PackedMemory {
  Buffer<float> wide, scale, sums;
  Buffer<isa::Half> half;
  Buffer<int8_t> whole;
  Buffer<uint16_t> tiles;
  Packed view;

  PackedMemory(int tokens, int widest) {
    const size_t count = (size_t)tokens * padded(widest);
    wide = Buffer<float>(count);
    half = Buffer<isa::Half>(count);
    whole = Buffer<int8_t>(count);
    scale = Buffer<float>(count / 32);
    sums = Buffer<float>(count / 16);
    tiles = Buffer<uint16_t>((size_t)(tokens + 15) / 16 * 16 * padded(widest));
    view = {wide, half, whole, scale, sums, tiles, 0, 0, 0, nullptr, INT8};
  }
};

constexpr int LOGITS = 256;  // of each token, held before they are looked at

// What one thread keeps for itself. Every thread computes the residual stream and the decisions, which is cheaper than
// sharing them.
struct Own {
  Buffer<float> x, z, before, code, pages, logits, near;
  PackedMemory a, b;
  Steps steps;
  std::vector<float> best;
  std::vector<int64_t> best_id;
  int64_t weight_bytes = 0;
  double kv_bytes = 0;
  int projected = 0, asked = 0;  // how often the shared K and V, and the codes, were written

  Own(int tokens, int dim, int widest, int rank, int head_dim)
      : x((size_t)tokens * dim), z((size_t)tokens * dim), before((size_t)tokens * dim), code(2 * rank), pages((size_t)2 * PAGE * head_dim),
        logits((size_t)tokens * LOGITS), near((size_t)RUNS * padded(widest)), a(tokens, widest), b(tokens, widest), best(tokens), best_id(tokens) {
    for (std::vector<int>* of : {&steps.here, &steps.kept, &steps.skipped}) of->reserve(tokens);
  }
};

struct PrefillMemory;

struct Model : Visits {
  ModelSpec spec;
  std::vector<float> inv_freq, rope_scaling;
  Pool pool;
  std::vector<std::unique_ptr<Own>> own;
  std::mutex one_pass;
  std::shared_ptr<PrefillMemory> prefill;  // made with the first pass that needs it
  int half = 0, query = 0, key = 0, inner = 0, adapter = 0, rank = 2, look = 0;
  // Shared by the threads of a pass. K, V and codes are double: a visit that nobody runs has no barrier after them.
  Buffer<float> q, k[2], v[2], code[2], attended, update, gate, up, adapter_gate, adapter_up, bypass, cos_sin, looks;

  Model(const ModelSpec& given, int threads)
      : Visits(given), spec(given), pool(threads) {
    int widest = spec.dim;
    for (const LayerSpec& l : layers) {
      half = l.head_dim / 2;
      query = larger(query, l.heads * l.head_dim);
      key = larger(key, l.kv_heads * l.head_dim);
      inner = larger(inner, l.gate.rows);
      if (l.adapter_gate.data) adapter = larger(adapter, l.adapter_gate.rows);
      for (const BranchSpec* branch : {&l.branch, &l.mlp_branch}) {
        rank = larger(rank, branch->router.first.rows);
        look = larger(look, branch->router.look);
        for (int i = 0; i < branch->router.count; ++i) rank = larger(rank, branch->router.ops[i].rows);
      }
    }
    widest = larger(widest, larger(query, larger(inner, adapter)));
    spec.layers = nullptr;
    inv_freq.assign(given.inv_freq, given.inv_freq + given.ropes * half);
    rope_scaling.assign(given.rope_scaling, given.rope_scaling + given.ropes);
    const size_t n = spec.max_tokens;
    q = Buffer<float>(n * query);
    for (int i = 0; i < 2; ++i) {
      k[i] = Buffer<float>(n * key);
      v[i] = Buffer<float>(n * key);
      code[i] = Buffer<float>(n * rank);
    }
    attended = Buffer<float>(n * query);
    looks = Buffer<float>(n * look);
    update = Buffer<float>(n * spec.dim);
    bypass = Buffer<float>(n * spec.dim);
    gate = Buffer<float>(n * inner);
    up = Buffer<float>(n * inner);
    adapter_gate = Buffer<float>(n * adapter);
    adapter_up = Buffer<float>(n * adapter);
    cos_sin = Buffer<float>(n * spec.ropes * 2 * half);
    for (int t = 0; t < pool.size(); ++t)
      own.push_back(std::make_unique<Own>(spec.max_tokens, spec.dim, widest, rank, 2 * half));
  }

  static int larger(int a, int b) { return a > b ? a : b; }
};

// Of token n, [half].
static inline const float* frequencies(const Model& m, const PassSpec& p, int rope, int n) {
  return p.inv_freq ? p.inv_freq + ((size_t)n * m.spec.ropes + rope) * m.half : m.inv_freq.data() + (size_t)rope * m.half;
}
