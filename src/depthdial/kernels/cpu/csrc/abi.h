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

// What becomes of a router's code before its last product.
enum { NORM_TANH, TANH_NORM, LINEAR };

struct RouterSpec {
  Mat enc;
  const float* scale;
  const float* folded;
  float eps, bias, cut;
  int32_t order, soft;  // NORM_TANH, TANH_NORM or LINEAR
};

struct LayerSpec {
  NormSpec before_attn, before_mlp, after_attn, after_mlp, q_norm, k_norm;
  Mat q, k, v, o, gate, up, down;
  Mat adapter_gate, adapter_up, adapter_down;
  RouterSpec router;
  int32_t heads, kv_heads, head_dim, rope, gelu, window;  // window 0: none
  int32_t sparse_kv;  // K and V are written for the tokens that run the layer, and for no other
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
  const int32_t* page_table;
  void* k_cache;  // [layers, pages, kv_heads, PAGE, head_dim]
  void* v_cache;
  const float* offsets;
  const uint8_t* given;  // [layers, tokens] or null
  float* logits;         // [asked_count, vocabulary] or null
  int64_t* argmax;       // [asked_count] or null; -1: its logits are not finite
  uint8_t* keep;         // [layers, tokens]
  float* score;          // [layers, tokens]
  const int32_t* asked;  // [asked_count]: tokens whose logits are wanted
  int64_t table_stride, layer_stride;  // in elements
  int32_t tokens, table_rows, table_columns, pages;
  int32_t asked_count;
  int32_t reading;  // of prompts: activations stay as they are under int8 weights
  int64_t rows_run, layers_run, weight_bytes, kv_bytes, padded_rows;  // written by the pass
};
