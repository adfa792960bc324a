// What Python calls. One library for each instruction set, with nothing in common that a linker could mix up.
#include "pass.h"
#if defined(DEPTHDIAL_AMX)
#include "prefill.h"
#endif

namespace {

struct Call {
  Model* model;
  PassSpec* pass;
  int first, last, stood;
};

#if defined(DEPTHDIAL_AMX)
void prefill_on_thread(void* context, int thread) {
  Call& call = *static_cast<Call*>(context);
  const amx::Session tiles;
  const int stood = Prefill(*call.model, *call.model->prefill, *call.pass, thread).steps(call.first, call.last);
  if (thread == 0) call.stood = stood;
}
#endif

void on_thread(void* context, int thread) {
  Call& call = *static_cast<Call*>(context);
#if defined(DEPTHDIAL_AMX)
  const amx::Session tiles(std::min(call.pass->tokens, amx::TILE));
#endif
  const int stood = call.model->spec.bf16 ? Pass<uint16_t>(*call.model, *call.pass, thread).steps(call.first, call.last)
                                          : Pass<float>(*call.model, *call.pass, thread).steps(call.first, call.last);
  if (thread == 0) call.stood = stood;
}

// Is it known before the pass that token n leaves nothing at a visit?
bool absent(const LayerSpec& l, const PassSpec& p, int n) {
  if (!l.nothing) return false;
  if (p.offsets[n] == INFINITY) return !l.base;
  return l.branch.by == BY_TABLE && p.given && !p.given[(size_t)l.step * p.tokens + n];
}

// 0, or what is out of range: 1 an id, 2 a sequence, 3 a position, 4 a page, 5 a token asked for.
int wrong(const Model& model, const PassSpec& p) {
  for (int n = 0; n < p.tokens; ++n) {
    if (p.ids[n] < 0 || p.ids[n] >= model.spec.embed.rows) return 1;
    if (p.sequences[n] < 0 || p.sequences[n] >= p.table_rows) return 2;
    const int own = p.positions[n] / PAGE;
    if (p.positions[n] < 0 || own >= p.table_columns) return 3;
    for (const LayerSpec& l : model.layers) {
      const int32_t* pages = p.page_table + l.cache * p.cache_stride + p.sequences[n] * p.table_stride;
      for (int i = 0; i <= own; ++i)
        if (pages[i] < (i == own && !absent(l, p, n) ? 0 : -1) || pages[i] >= p.pages) return 4;
    }
  }
  for (int i = 0; i < p.asked_count; ++i)
    if (p.asked[i] < 0 || p.asked[i] >= p.tokens) return 5;
  return 0;
}

void begin(PassSpec* p, int first) {
  if (!first && !p->resumed) p->rows_run = p->layers_run = p->weight_bytes = p->kv_bytes = p->padded_rows = p->looks = 0;
}

}  // namespace

extern "C" {

// Whether the system lets this process use the instructions the library was built for.
__attribute__((visibility("default"))) int depthdial_ready() {
#if defined(DEPTHDIAL_AMX)
  return amx::granted();
#else
  return 1;
#endif
}

// Reads memory with the threads of a pass and does nothing with it: the limit that a pass is held against.
__attribute__((visibility("default"))) int64_t depthdial_read(void* handle, const void* data, int64_t bytes) {
  struct Reading {
    const int64_t* data;
    int64_t count, size;
    std::atomic<int64_t> sum;
  } reading{static_cast<const int64_t*>(data), bytes / 8, static_cast<Model*>(handle)->pool.size(), {0}};
  static_cast<Model*>(handle)->pool.run(
      [](void* context, int thread) {
        Reading& r = *static_cast<Reading*>(context);
        int64_t sums[64] = {};  // eight runs side by side, as the kernels read weights
        const int64_t begin = r.count * thread / r.size, run = (r.count * (thread + 1) / r.size - begin) / 64 * 8;
        for (int64_t i = begin; i < begin + run; i += 8)
          for (int side = 0; side < 8; ++side)
            for (int j = 0; j < 8; ++j) sums[side * 8 + j] += r.data[side * run + i + j];
        for (int j = 1; j < 64; ++j) sums[0] += sums[j];
        r.sum += sums[0];
      },
      &reading);
  return reading.sum;
}

// null: no memory, or no threads to be had.
__attribute__((visibility("default"))) void* depthdial_new(const ModelSpec* spec, int threads) {
  try {
    return new Model(*spec, threads);
  } catch (...) {
    return nullptr;
  }
}

__attribute__((visibility("default"))) void depthdial_free(void* model) { delete static_cast<Model*>(model); }

// Whether `depthdial_prefill` runs this model: on tiles only.
__attribute__((visibility("default"))) int depthdial_prefills(void* handle) {
#if defined(DEPTHDIAL_AMX)
  return PrefillMemory::takes(*static_cast<Model*>(handle));
#else
  return 0;
#endif
}

// As `depthdial_steps`, of any number of tokens; -6: no memory.
__attribute__((visibility("default"))) int depthdial_prefill(void* handle, PassSpec* pass, int first, int last) {
#if defined(DEPTHDIAL_AMX)
  Model& model = *static_cast<Model*>(handle);
  if (const int code = first || pass->resumed ? 0 : wrong(model, *pass)) return -code;
  std::lock_guard<std::mutex> hold(model.one_pass);
  try {
    if (!model.prefill) model.prefill = std::make_shared<PrefillMemory>(model);
    model.prefill->hold(model, pass->tokens);
  } catch (...) {
    return -6;
  }
  begin(pass, first);
  Call call{&model, pass, first, last, END};
  model.pool.run(prefill_on_thread, &call);
  double kv = 0;
  for (const auto& own : model.prefill->own) {
    pass->padded_rows += own->padded;
    kv += own->kv_bytes;
  }
  pass->kv_bytes += (int64_t)(kv + 0.5);
  return call.stood;
#else
  return END;
#endif
}

// Steps first.. of a pass, up to `last` or to one that the caller decides: returns it, END past the last, or minus the code
// of `wrong`. first > 0: x and at are those that it left. pass->resumed: the decision of `first` is made.
__attribute__((visibility("default"))) int depthdial_steps(void* handle, PassSpec* pass, int first, int last) {
  Model& model = *static_cast<Model*>(handle);
  if (const int code = first || pass->resumed ? 0 : wrong(model, *pass)) return -code;
  std::lock_guard<std::mutex> hold(model.one_pass);
  begin(pass, first);
  Call call{&model, pass, first, last, END};
  model.pool.run(on_thread, &call);
  double kv = 0;
  for (const auto& own : model.own) {
    pass->weight_bytes += own->weight_bytes;
    kv += own->kv_bytes;
  }
  pass->kv_bytes += (int64_t)(kv + 0.5);
  return call.stood;
}
}
