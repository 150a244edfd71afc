#include <fmt/format.h>

#include <cmath>

#include "kernels/cpu/cpu_isa.h"
#include "kernels/cpu/gemm_kernel.h"
#include "kernels/cpu/kernel_bench.h"
#include "kernels/cpu/ops.h"

namespace hadal::bench {
namespace {

constexpr int kHeads = 16, kLatent = 512, kNope = 128, kRope = 64, kV = 128;  // V2-Lite

// A bf16 cache with `sequences` contexts.
struct Cache {
  std::vector<bf16_t> data;
  std::vector<int32_t> tables;  // [sequences, blocks]
  int blocks;

  Cache(int sequences, int context) {
    blocks = (context + kBlockSize - 1) / kBlockSize;
    data.resize(static_cast<size_t>(sequences) * static_cast<size_t>(blocks) * kBlockSize *
                (kLatent + kRope));
    for (size_t i = 0; i < data.size(); ++i) {
      data[i] = FloatToBf16(std::sin(static_cast<float>(i % 9973)));
    }
    for (int s = 0; s < sequences; ++s) {
      for (int b = 0; b < blocks; ++b) tables.push_back(b * sequences + s);
    }
  }
};

std::vector<float> Wave(int64_t n) {
  std::vector<float> x(static_cast<size_t>(n));
  for (size_t i = 0; i < x.size(); ++i) x[i] = std::cos(static_cast<float>(i % 7919)) * 0.1f;
  return x;
}

void BenchDecode(int sequences, int context, const Setup& setup) {
  const Cache cache(sequences, context);
  const std::vector<float> q_latent = Wave(int64_t{sequences} * kHeads * kLatent);
  const std::vector<float> q_rope = Wave(int64_t{sequences} * kHeads * kRope);
  std::vector<float> out(q_latent.size());
  std::vector<AttentionRow> rows;
  for (int s = 0; s < sequences; ++s) {
    rows.push_back({s, 1, context - 1, s * cache.blocks});
  }
  const double keys = static_cast<double>(sequences) * context;
  for (const CpuCeilings& ceilings : setup.isas) {
    CpuContext op(setup.pool, ceilings.isa);
    const double seconds = BestSeconds(setup.seconds, [&] {
      MlaDecode({.q_latent = q_latent.data(), .q_rope = q_rope.data(),
                 .q_rope_stride = kHeads * kRope, .q_rope_head_stride = kRope, .out = out.data(),
                 .rows = {.rows = rows.data(), .num_rows = sequences,
                          .block_tables = cache.tables.data(), .tokens = sequences},
                 .cache = cache.data.data(),
                 .heads = kHeads, .latent_rank = kLatent, .rope_dim = kRope, .scale = 0.1f}, op);
    });
    Report(fmt::format("decode {} {} x context {}", CpuIsaName(ceilings.isa), sequences, context),
           seconds, keys * (kLatent + kRope) * 2, keys * kHeads * (2 * kLatent + kRope) * 2,
           ceilings, true);
  }
}

// kept: keys and values before `start` are there, as in the later chunks of a prompt.
void BenchPrefill(int start, int tokens, bool kept, const Setup& setup) {
  const Cache cache(1, start + tokens);
  const auto w_uk = RandomPacked(kNope, kLatent, DType::kBF16, *setup.pool, kHeads);
  const auto w_uv = RandomPacked(kV, kLatent, DType::kBF16, *setup.pool, kHeads);
  const std::vector<float> q = Wave(int64_t{tokens} * kHeads * (kNope + kRope));
  std::vector<float> out(static_cast<size_t>(tokens) * kHeads * kV);
  const AttentionRow row{0, tokens, start, 0};
  // Pairs of a query and a key that it sees, and the keys that are made.
  const int filled = kept ? start / kBlockSize : 0;
  const int64_t tile_floats = ExpandedTileFloats(kHeads, kNope, kRope, kV);
  std::vector<float> expanded(static_cast<size_t>(filled * tile_floats), 0.01f);
  const double keys = start + tokens, pairs = tokens * (start + (tokens + 1) / 2.0);
  const double made = keys - filled * kBlockSize;
  const double read = made * (kLatent + kRope) * 2 + static_cast<double>(expanded.size()) * 4;
  const double make = made * kHeads * kLatent * (kNope + kV) * 2;
  const double attend = pairs * kHeads * (kNope + kRope + kV) * 2;
  for (const CpuCeilings& ceilings : setup.isas) {
    CpuContext op(setup.pool, ceilings.isa);
    const double seconds = BestSeconds(setup.seconds, [&] {
      MlaPrefill({.q = q.data(), .q_stride = kHeads * (kNope + kRope), .out = out.data(),
                  .rows = {.rows = &row, .host_rows = &row, .num_rows = 1,
                           .block_tables = cache.tables.data(), .tokens = tokens},
                  .cache = cache.data.data(), .w_uk = w_uk.get(), .w_uv = w_uv.get(),
                  .heads = kHeads, .latent_rank = kLatent, .nope_dim = kNope, .rope_dim = kRope,
                  .v_dim = kV, .scale = 0.1f,
                  .expanded = {.row = kept ? 0 : -1, .data = expanded.data(), .tiles = filled,
                               .filled = filled}}, op);
    });
    Report(fmt::format("prefill {} {} + {} ({:.0f} % up-projection)", CpuIsaName(ceilings.isa),
                       start, tokens, 100 * make / (make + attend)),
           seconds, read, make + attend, ceilings,
           !op.gemm->bf16_attention);
  }
}

}  // namespace

void BenchDecodeAttention(const Setup& setup) {
  for (const int context : {128, 1024, 4096}) {
    for (const int sequences : {1, 16}) BenchDecode(sequences, context, setup);
  }
}

void BenchPrefillAttention(const Setup& setup) {
  BenchPrefill(0, 512, false, setup);
  BenchPrefill(3584, 512, false, setup);
  BenchPrefill(4000, 64, false, setup);
  BenchPrefill(4000, 64, true, setup);
  BenchPrefill(4000, 8, true, setup);
}

}  // namespace hadal::bench
