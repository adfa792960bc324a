// The structs that Python fills (kernels/cpu/native.py mirrors them field by field). Every pointer outlives the model or the call.
#pragma once
#include <cstdint>

// Those from Q4_0 on lie in blocks (blocks.h), the last three of them in groups of eight.
enum Kind : int32_t { FP32 = 0, BF16 = 1, INT8 = 2, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K };

// Row-major [rows, cols] but for blocks; data null: absent. scale: fp32 [rows] for INT8, of blocks whatever they hold. bias: fp32 [rows] or null.
struct Mat {
  const void* data;
  const float* scale;
  const float* bias;
  int32_t rows, cols, kind;
};

// weight: fp32, with Gemma's 1 already added; null: absent. once: only the product with it is rounded.
struct NormSpec {
  const float* weight;
  float eps;
  int32_t once;
};

// An operation on a router's code, fp32.
enum : int32_t { OP_DENSE, OP_NORM, OP_TANH, OP_SILU, OP_RELU, OP_GELU, OP_SIGMOID };

struct OpSpec {
  const float* weight;  // [rows, cols] of OP_DENSE, [cols] of OP_NORM
  const float* bias;    // [rows] or null
  float eps;
  int32_t kind, rows, cols;
};

// The code is first z, or what the head says of the stream: `look`, so many of its rows, else 0. The last operation leaves
// one number. wide: first z is not rounded.
struct RouterSpec {
  Mat first;
  const OpSpec* ops;
  float cut;
  int32_t count, look, wide, soft;
};

enum : int32_t { ALL_RUN, BY_OPS, BY_TABLE, OPEN };
constexpr int32_t END = 1 << 30;

struct BranchSpec {
  RouterSpec router;
  int32_t by, then, otherwise;  // steps
};

enum : int32_t { ACT_SILU, ACT_GELU, ACT_RELU2 };

// up without data: the MLP is not gated.
struct LayerSpec {
  NormSpec before_attn, before_mlp, after_attn, after_mlp, q_norm, k_norm;
  Mat q, k, v, o, gate, up, down;
  Mat adapter_gate, adapter_up, adapter_down;
  BranchSpec branch, mlp_branch;
  int32_t step, halves;          // its first step; it has a second one, of its MLP
  int32_t cache, nothing, base;  // row of the page tables; who does not run it leaves no K and V; the untouched base runs it
  int32_t whole;                 // weights are on the whole visit
  int32_t heads, kv_heads, head_dim, rope, act, window;  // window 0: none
  int32_t bare;        // units take the stream as it is; the norms before them are what routers and adapters see
  int32_t wide;        // q and k are normed as they are, not head by head
  int32_t late;        // after the rope
  int32_t turned;      // pairs of a head that the rope turns, the first ones
  int32_t neighbours;  // pairs are 2 i and 2 i + 1, not i and i + turned
  float scale, softcap, residual;  // on q k; of scores, 0: none; on updates

  // Is there anything that tiles do not do?
  bool odd() const { return bare || wide || late || neighbours || softcap > 0 || !up.data || 2 * turned != head_dim; }
};

struct ModelSpec {
  const LayerSpec* layers;
  Mat embed, head;
  NormSpec norm;
  const float* inv_freq;      // [ropes, head_dim / 2]
  const float* rope_scaling;  // [ropes]
  int32_t count, dim, ropes, bf16, max_tokens;
  int32_t exact_ropes, query_scales;        // heads are turned in fp32 and rounded once; passes scale queries
  float embed_scale, logit_scale, softcap;  // softcap 0: none
};

struct PassSpec {
  const int64_t* ids;
  const int32_t* positions;
  const int32_t* sequences;
  const int32_t* page_table;  // [caches, sequences, pages of one]; -1: none
  void* k_cache;              // [pages, kv_heads, PAGE, head_dim]
  void* v_cache;
  uint8_t* held;  // [pages, PAGE]: is an entry there? null: everywhere
  const float* offsets;
  const uint8_t* given;  // [steps, tokens] or null
  float* logits;         // [asked_count, vocabulary] or null
  int64_t* argmax;       // [asked_count] or null; -1: its logits are not finite
  uint8_t* keep;         // [steps, tokens]
  float* score;          // [steps, tokens]
  float* x;              // [tokens, dim], of a pass that stops and goes on: the stream,
  float* z;              // the normed input of the unit where it stopped,
  float* run;            // and what the caller says there, beside `keep`: [tokens]; null: 1
  float* skip;
  int32_t* at;           // [tokens]: the step that each waits for
  const float* inv_freq;     // [tokens, ropes, head_dim / 2], where they depend on the length of a text; null: the model's
  const float* query_scale;  // [tokens]: on queries, after the rope; null: 1
  const int32_t* asked;  // [asked_count]: tokens whose logits are wanted
  int64_t table_stride, cache_stride;  // of the page table, in elements
  int32_t tokens, resumed, table_rows, table_columns, pages;
  int32_t asked_count;
  int32_t reading;  // of prompts: activations stay as they are under int8 weights
  int64_t rows_run, layers_run, weight_bytes, kv_bytes, padded_rows, looks;  // added up from where a pass begins
};
