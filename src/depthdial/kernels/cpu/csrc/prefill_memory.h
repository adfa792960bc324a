// What prefill passes work in: made with the first one, shared by the threads or one for each.
#pragma once
#include "model.h"
#include "product.h"
#include "prompt_attention.h"

constexpr int MOST_GROUPS = 16;                    // of a block: so many stay in a core's own cache
constexpr int MOST_TOKENS = MOST_GROUPS * amx::LANES;

static inline int up_to(int count, int unit) { return (count + unit - 1) / unit * unit; }

// Memory that is not touched before it is used: nobody pays for threads without work.
template <class T>
class Raw {
 public:
  Raw() = default;
  explicit Raw(size_t count) : data_(static_cast<T*>(std::aligned_alloc(64, (count * sizeof(T) + 127) / 64 * 64)), &std::free) {
    if (!data_) throw std::bad_alloc();
  }
  operator T*() const { return data_.get(); }

 private:
  std::shared_ptr<T> data_;
};

// One thread's: panels of a block of tokens, and what attention needs.
struct BlockMemory {
  Raw<uint32_t> x_data, z_data, q_data, attended_data, inner_data, weights, values;
  Raw<float> scores, state, turns, codes;
  Raw<uint16_t> wide;
  amx::Panel x, z, q, attended, inner;
  amx::Softmax softmax;
  amx::Scratch scratch;
  Steps steps;
  std::vector<int> rows, positions;
  alignas(64) float weight[MOST_TOKENS];
  int64_t padded = 0;
  double kv_bytes = 0;

  BlockMemory(int dim, int query, int inner_cols, int rank, int head_dim, int share) {
    const size_t keys = amx::STRETCH;
    panel(x, x_data, dim);
    panel(z, z_data, dim);
    panel(q, q_data, query);
    panel(attended, attended_data, query);
    panel(inner, inner_data, inner_cols);
    scores = Raw<float>(keys * amx::LANES);
    weights = Raw<uint32_t>(keys / 2 * amx::LANES);
    values = Raw<uint32_t>(keys / 2 * head_dim);
    state = Raw<float>(MOST_GROUPS * share * amx::state_size(head_dim));
    softmax = {scores, weights, values, state, {}, {}};
    turns = Raw<float>((size_t)MOST_TOKENS * head_dim);
    codes = Raw<float>((size_t)(MOST_TOKENS + amx::LANES) * up_to(rank, amx::TILE));
    wide = Raw<uint16_t>((size_t)2 * amx::TILE * std::max(std::max(dim, query), inner_cols));
    scratch.wide = wide;
  }

 private:
  static void panel(amx::Panel& made, Raw<uint32_t>& data, int cols) {
    data = Raw<uint32_t>((size_t)MOST_TOKENS * cols / 2);
    made.data = data;
    made.cols = cols;
  }
};

static inline int64_t bytes_of(std::initializer_list<const Mat*> all) {
  int64_t sum = 0;
  for (const Mat* w : all) sum += w->data ? w->rows * row_bytes(*w) : 0;
  return sum;
}

struct PrefillMemory {
  int capacity = 0;
  Raw<uint16_t> x;                // [capacity, dim]: the residual stream
  Raw<float> cos_sin, numbers;    // [ropes, capacity, head_dim]; what routers say, offsets added, [capacity]
  std::vector<LayerSpec> layers;  // with the small matrices filled up to whole tiles
  std::vector<Buffer<uint8_t>> filled;
  std::vector<Buffer<float>> scales;
  std::vector<std::unique_ptr<BlockMemory>> own;

  explicit PrefillMemory(const Model& m) : layers(m.layers) {
    int inner = m.inner, share = 1;
    for (LayerSpec& l : layers) {
      share = std::max(share, l.heads / l.kv_heads);
      inner = std::max(inner, 2 * l.kv_heads * l.head_dim);
      for (BranchSpec* branch : {&l.branch, &l.mlp_branch})
        if (branch->router.first.data) fill(branch->router.first, amx::TILE);
      if (!l.adapter_gate.data) continue;
      for (Mat* w : {&l.adapter_gate, &l.adapter_up}) fill(*w, amx::STEP);
      fill(l.adapter_down, amx::TILE);
      inner = std::max(inner, l.adapter_gate.rows);
    }
    const int head_dim = 2 * m.half;
    for (size_t t = 0; t < m.own.size(); ++t)
      own.push_back(std::make_unique<BlockMemory>(m.spec.dim, m.query, inner, m.rank, head_dim, share));
  }

  void hold(const Model& m, int tokens) {
    if (tokens <= capacity) return;
    x = Raw<uint16_t>((size_t)tokens * m.spec.dim);
    cos_sin = Raw<float>((size_t)m.spec.ropes * tokens * 2 * m.half);
    numbers = Raw<float>(tokens);
    capacity = tokens;
  }

  // Whether the large matrices are whole tiles of bf16 or int8.
  static bool takes(const Model& m) {
    if (!m.spec.bf16 || m.spec.exact_ropes || m.spec.query_scales) return false;
    if (m.spec.dim % amx::STEP || m.spec.head.rows < amx::TILE) return false;
    for (const LayerSpec& l : m.layers) {
      if (l.head_dim % amx::STEP || l.gate.rows % amx::STEP || l.odd() || l.act == ACT_RELU2) return false;
      for (const Mat* w : {&l.q, &l.k, &l.v, &l.o, &l.gate, &l.up, &l.down, &l.adapter_gate, &l.adapter_up, &l.adapter_down})
        if (w->data && (w->kind == FP32 || in_blocks(w->kind))) return false;
      for (const BranchSpec* branch : {&l.branch, &l.mlp_branch})
        if (branch->router.first.data && branch->router.first.kind != BF16) return false;
      for (const BranchSpec* branch : {&l.branch, &l.mlp_branch})
        if (branch->router.look && branch->router.look < amx::TILE) return false;
    }
    return m.spec.head.kind != FP32 && m.spec.embed.kind != FP32 && !in_blocks(m.spec.head.kind) && !in_blocks(m.spec.embed.kind);
  }

 private:
  // Zeros behind the rows, and behind the columns of each.
  void fill(Mat& w, int unit) {
    const int rows = up_to(w.rows, unit), cols = up_to(w.cols, amx::STEP), size = value_bytes(w);
    if (rows == w.rows && cols == w.cols) return;
    filled.emplace_back((size_t)rows * cols * size);
    uint8_t* to = filled.back();
    for (int r = 0; r < w.rows; ++r)
      memcpy(to + (size_t)r * cols * size, (const uint8_t*)w.data + (size_t)r * w.cols * size, (size_t)w.cols * size);
    for (const float** of : {&w.scale, &w.bias})
      if (*of) {
        scales.emplace_back(rows);
        memcpy(scales.back(), *of, sizeof(float) * w.rows);
        *of = scales.back();
      }
    w.data = to;
    w.rows = rows;
    w.cols = cols;
  }
};
