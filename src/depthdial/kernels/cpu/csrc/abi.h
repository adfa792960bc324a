// The structs that Python fills (kernels/cpu/native.py mirrors them field by field). Every pointer outlives the model or the call.
#pragma once
#include <cstdint>

enum Kind : int32_t { FP32 = 0, BF16 = 1, INT8 = 2 };

// Row-major [rows, cols]; data null: absent. scale: fp32 [rows] for INT8. bias: fp32 [rows] or null.
struct Mat {
  const void* data;
  const float* scale;
  const float* bias;
  int32_t rows, cols, kind;
};

// weight: fp32, with Gemma's 1 already added; null: absent.
struct NormSpec {
  const float* weight;
  float eps;
  int32_t plus_one;
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

struct LayerSpec {
  NormSpec before_attn, before_mlp, after_attn, after_mlp, q_norm, k_norm;
  Mat q, k, v, o, gate, up, down;
  Mat adapter_gate, adapter_up, adapter_down;
  BranchSpec branch, mlp_branch;
  int32_t step, halves;          // its first step; it has a second one, of its MLP
  int32_t cache, nothing, base;  // row of the page tables; who does not run it leaves no K and V; the untouched base runs it
  int32_t whole;                 // weights are on the whole visit
  int32_t heads, kv_heads, head_dim, rope, gelu, window;  // window 0: none
  float scale;
};

struct ModelSpec {
  const LayerSpec* layers;
  Mat embed, head;
  NormSpec norm;
  const float* inv_freq;      // [ropes, head_dim / 2]
  const float* rope_scaling;  // [ropes]
  int32_t count, dim, ropes, bf16, max_tokens;
  float embed_scale, softcap;  // softcap 0: none
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
  const int32_t* asked;  // [asked_count]: tokens whose logits are wanted
  int64_t table_stride, cache_stride;  // of the page table, in elements
  int32_t tokens, resumed, table_rows, table_columns, pages;
  int32_t asked_count;
  int32_t reading;  // of prompts: activations stay as they are under int8 weights
  int64_t rows_run, layers_run, weight_bytes, kv_bytes, padded_rows, looks;  // added up from where a pass begins
};
