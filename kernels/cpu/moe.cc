#include <algorithm>

#include "kernels/cpu/ops.h"

namespace hadal {
namespace {

// The rows (token, choice) whose expert is here, sorted by expert and by token within one.
struct SortedRows {
  int rows = 0;
  int32_t* offsets;    // [local experts + 1]
  int32_t* row_token;  // [rows]
  int32_t* row_of;     // [tokens, top_k] row, -1: not here
};

SortedRows SortByExpert(const MoeParams& p, int local_experts, ScratchArena& arena) {
  const int64_t choices = int64_t{p.tokens} * p.top_k;
  SortedRows sorted{.offsets = arena.Allocate<int32_t>(local_experts + 1),
                    .row_token = arena.Allocate<int32_t>(choices),
                    .row_of = arena.Allocate<int32_t>(choices)};
  auto* next = arena.Allocate<int32_t>(local_experts);
  std::fill_n(next, local_experts, 0);
  const auto local = [&](int64_t i) { return p.ids[i] < 0 ? -1 : p.local_index[p.ids[i]]; };
  for (int64_t i = 0; i < choices; ++i) {
    if (local(i) >= 0) ++next[local(i)];
  }
  for (int e = 0; e < local_experts; ++e) {
    sorted.offsets[e] = sorted.rows;
    sorted.rows += next[e];
    next[e] = sorted.offsets[e];
  }
  sorted.offsets[local_experts] = sorted.rows;
  for (int64_t i = 0; i < choices; ++i) {
    sorted.row_of[i] = local(i) < 0 ? -1 : next[local(i)]++;
    if (local(i) >= 0) sorted.row_token[sorted.row_of[i]] = static_cast<int32_t>(i / p.top_k);
  }
  return sorted;
}

}  // namespace

void Moe(const MoeParams& p, CpuContext& context) {
  if (p.tokens == 0) return;
  const bool shared = p.shared.w13 != nullptr;
  if (shared) {
    Mlp({.x = p.x, .w13 = p.shared.w13, .w2 = p.shared.w2, .width = p.shared.width, .out = p.out,
         .tokens = p.tokens}, context);
  }
  ScratchArena::Scope scope(context.shared);
  const SortedRows sorted = SortByExpert(p, p.w13->count, context.shared);
  float* row_out = context.shared.Allocate<float>(sorted.rows * p.dim);
  MoeMlp({.x = static_cast<const float*>(p.x), .w13 = CpuMatrices(p.w13).data(),
          .w2 = CpuMatrices(p.w2).data(), .experts = p.w13->count,
          .expert_offsets = sorted.offsets, .row_token = sorted.row_token, .row_out = row_out,
          .rows = sorted.rows, .dim = p.dim, .width = p.width}, context);
  MoeCombine({.row_out = row_out, .row_of = sorted.row_of, .weights = p.weights,
              .out = static_cast<float*>(p.out), .accumulate = shared, .tokens = p.tokens,
              .top_k = p.top_k, .dim = p.dim}, context);
}

}  // namespace hadal
