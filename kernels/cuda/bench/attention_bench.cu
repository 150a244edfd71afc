#include <algorithm>
#include <cmath>
#include <cstdio>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "kernels/cuda/attention/mla_prefill.cuh"
#include "kernels/cuda/attention/ops.h"
#include "kernels/cuda/bench/probes.h"

// Attention of the released dims: microseconds and the part of the card's ceiling, cold L2.

namespace hadal::cuda {
namespace {

constexpr int kLatent = 512, kRope = 64, kDim = kLatent + kRope, kNope = 128, kV = 128;
constexpr int64_t kPoolBlocks = 40000;  // 2.9 GB of latent cache

using bench::BenchContext;
using bench::Ceilings;
using bench::MeasureCeilings;

const char* PathName(MlaPath path) {
  constexpr const char* kNames[] = {"chosen", "general", "mma", "cluster", "wgmma"};
  return kNames[static_cast<int>(path)];
}

struct Bench {
  CudaContext& context;
  Ceilings ceilings;
  const void* cache;
  std::vector<int32_t> blocks;  // a permutation of the pool
  std::mt19937 rng{7};

  Bench() : context(BenchContext(int64_t{1} << 30)), ceilings(MeasureCeilings(context)) {
    cache = bench::RandomDevice(kPoolBlocks * kBlockSize * kDim, DType::kBF16, context);
    blocks.resize(kPoolBlocks);
    std::iota(blocks.begin(), blocks.end(), 0);
    std::shuffle(blocks.begin(), blocks.end(), rng);
  }
};

struct DecodeShape {
  int heads, batch, length;
  int queries = 1;
  int64_t bound = 0;  // of the context; 0: the length
};

// Each path beside the others, with the share of the ceilings that the first reaches.
void Decode(Bench& b, const std::vector<MlaPath>& paths, const DecodeShape& shape) {
  const auto [heads, batch, length, queries, bound] = shape;
  const int row_blocks = (length + kBlockSize - 1) / kBlockSize;
  const int64_t bytes =
      int64_t{batch} * length * kDim * 2 + int64_t{batch} * queries * heads * (kDim + kLatent) * 2;
  const int sets = bench::ColdSets(b.ceilings, bytes, 300);
  const int variants =
      static_cast<int>(std::clamp<int64_t>(kPoolBlocks / (int64_t{batch} * row_blocks), 1, sets));
  std::vector<AttentionRow> rows;
  for (int i = 0; i < variants * batch; ++i) {
    rows.push_back({i % batch * queries, queries, length - queries, i * row_blocks});
  }
  const AttentionRow* device_rows = bench::Upload(rows);
  const int32_t* tables = bench::Upload(b.blocks);
  const int64_t pairs = int64_t{batch} * queries * heads;
  MlaDecodeParams p;
  p.q_latent = bench::RandomDevice(pairs * kLatent, DType::kBF16, b.context);
  p.q_rope = bench::RandomDevice(pairs * (kNope + kRope), DType::kBF16, b.context);
  p.q_rope_stride = int64_t{heads} * (kNope + kRope);
  p.q_rope_head_stride = kNope + kRope;
  p.out = bench::DeviceBytes(pairs * kLatent * 2);
  p.cache = b.cache;
  p.heads = heads;
  p.latent_rank = kLatent;
  p.rope_dim = kRope;
  p.scale = 1 / std::sqrt(float{kNope + kRope});
  p.rows.num_rows = batch;
  p.rows.block_tables = tables;
  p.rows.tokens = batch * queries;
  p.rows.max_row_tokens = queries;
  p.rows.max_context = std::max<int64_t>(bound, length);
  const double flops = 2.0 * batch * queries * heads * length * (kDim + kLatent);
  std::printf("decode %3d heads, %3d x %5d, %d queries, bound %5ld:", heads, batch, length, queries,
              static_cast<long>(p.rows.max_context));
  for (const MlaPath path : paths) {
    const double us = bench::MedianMicros(
        std::max(sets, 20),
        [&](int i) {
          p.rows.rows = device_rows + i % variants * batch;
          MlaDecodeWith(path, p, b.context);
        },
        b.context);
    std::printf(" %s %.1f us", PathName(path), us);
    if (path != paths[0]) continue;
    std::printf(" (%.0f GB/s %.0f %%, %.0f TFLOP/s %.0f %%)", bytes / us * 1e-3,
                bytes / us * 1e-1 / b.ceilings.read_gbs, flops / us * 1e-6,
                flops / us * 1e-4 / b.ceilings.bf16_tflops);
  }
  std::printf("\n");
}

// Few rows of all lengths by all paths; what a step of the lite model has after 512 tokens; many
// rows.
void Decodes(Bench& b) {
  constexpr MlaPath kAuto = MlaPath::kAuto, kMma = MlaPath::kMma, kCluster = MlaPath::kCluster,
                    kWgmma = MlaPath::kWgmma;
  for (const int heads : {16, 128}) {
    const MlaPath runs = heads == 16 ? kMma : kWgmma;
    for (const int batch : {1, 4, 8, 16, 32, 64, 128, 256}) {
      Decode(b, {kAuto, kCluster, runs}, {heads, batch, 512});
    }
    for (const int batch : {1, 8, 64, 256}) {
      Decode(b, {kAuto, kCluster, runs}, {heads, batch, 520, 1, 1024});
    }
    for (const int length : {1024, 2048, 4096}) {
      Decode(b, {kAuto, kCluster, runs}, {heads, 1, length});
      Decode(b, {kAuto, kCluster, runs}, {heads, 16, length});
    }
    Decode(b, {kAuto}, {heads, 1, 8192});
    Decode(b, {kAuto}, {heads, 64, 1024});
    Decode(b, {kAuto}, {heads, 64, 4096});
    Decode(b, {kAuto}, {heads, 64, 8192});
  }
  Decode(b, {kAuto}, {8, 64, 512});
  Decode(b, {kAuto}, {2, 256, 512});
  Decode(b, {kAuto, kCluster, kMma, kWgmma}, {16, 8, 512, 2});
  Decode(b, {kAuto, kMma, kWgmma}, {16, 64, 512, 2});
  Decode(b, {kAuto, kMma, kWgmma}, {16, 64, 2048, 4});
}

// The flash kernel alone: keys and values are there.
void Flash(Bench& b, MlaPath path, int heads, int batch, int start, int queries) {
  const int length = start + queries,
            tile = path == MlaPath::kWgmma ? WgmmaPrefillTile() : MmaPrefillTile();
  const int64_t tokens = int64_t{batch} * queries, keys = int64_t{batch} * length;
  PrefillPiece piece;
  for (int r = 0; r < batch; ++r) {
    piece.segments[piece.count++] = {
        {r * queries, queries, start, 0}, 0, length, r * length, piece.tiles};
    piece.tiles += (queries + tile - 1) / tile;
  }
  piece.keys = static_cast<int>(keys);
  PrefillArgs args;
  args.q = bench::RandomDevice(tokens * heads * (kNope + kRope), DType::kBF16, b.context);
  args.q_stride = int64_t{heads} * (kNope + kRope);
  args.out = bench::DeviceBytes(tokens * heads * kV * 2);
  args.out_stride = int64_t{heads} * kV;
  args.group_heads = heads;
  args.nope_dim = kNope;
  args.rope_dim = kRope;
  args.v_dim = kV;
  args.scale_log2 = kLog2E / std::sqrt(float{kNope + kRope});
  args.k = bench::RandomDevice(keys * heads * kNope, DType::kBF16, b.context);
  args.v = bench::RandomDevice(keys * heads * kV, DType::kBF16, b.context);
  args.k_rope = bench::RandomDevice(keys * kDim, DType::kBF16, b.context);
  args.k_rope_stride = kDim;
  const double us = bench::MedianMicros(20, [&](int) {
    path == MlaPath::kWgmma ? WgmmaPrefillPiece(args, piece, b.context)
                            : MmaPrefillPiece(args, piece, b.context);
  }, b.context);
  const double pairs = batch * (queries * double(start) + queries * (queries + 1.0) / 2);
  const double flops = 2 * pairs * heads * (kNope + kRope + kV);
  std::printf("flash %s %3d heads, %d x %5d after %5d: %8.1f us  %6.1f TFLOP/s %5.1f %%\n",
              path == MlaPath::kWgmma ? "wgmma" : "mma  ", heads, batch, queries, start, us,
              flops / us * 1e-6, flops / us * 1e-4 / b.ceilings.bf16_tflops);
}

void Input(Bench& b, int heads, int tokens) {
  std::vector<int32_t> positions(static_cast<size_t>(tokens), 100);
  std::vector<int64_t> cache_rows(static_cast<size_t>(tokens));
  std::iota(cache_rows.begin(), cache_rows.end(), 0);
  MlaInputParams p;
  p.q_rope =
      bench::RandomDevice(int64_t{tokens} * heads * (kNope + kRope), DType::kBF16, b.context);
  p.q_rope_stride = int64_t{heads} * (kNope + kRope);
  p.q_rope_head_stride = kNope + kRope;
  p.heads = heads;
  p.kv_a = bench::RandomDevice(int64_t{tokens} * kDim, DType::kBF16, b.context);
  p.kv_a_stride = kDim;
  p.weight = static_cast<const float*>(bench::RandomDevice(kLatent * 2, DType::kBF16, b.context));
  p.latent_rank = kLatent;
  p.rope_dim = kRope;
  p.positions = bench::Upload(positions);
  p.cos_sin =
      static_cast<const float*>(bench::RandomDevice(1000 * kRope * 2, DType::kBF16, b.context));
  p.cache_rows = bench::Upload(cache_rows);
  p.cache = bench::RandomDevice(int64_t{tokens} * kDim, DType::kBF16, b.context);
  p.tokens = tokens;
  const double us = bench::MedianMicros(20, [&](int) { MlaInput(p, b.context); }, b.context);
  const int64_t bytes = int64_t{tokens} * (heads * kRope * 4 + kDim * 4);
  std::printf("input  %3d heads, %5d tokens: %8.1f us  %6.0f GB/s (warm)\n", heads, tokens, us,
              bytes / us * 1e-3);
}

// Everything between the cached latent rows of whole prompts and the heads' values.
void Prefill(Bench& b, DType dtype, int heads, int batch, int queries) {
  constexpr int kLayers = 8;
  const int64_t tokens = int64_t{batch} * queries;
  std::vector<AttentionRow> rows;
  for (int r = 0; r < batch; ++r) {
    rows.push_back({r * queries, queries, 0, r * ((queries + kBlockSize - 1) / kBlockSize)});
  }
  std::vector<std::unique_ptr<CudaPackedWeight>> up, values;
  for (int i = 0; i < kLayers; ++i) {
    up.push_back(bench::RandomWeight(heads, kNope, kLatent, dtype, b.context));
    values.push_back(bench::RandomWeight(heads, kV, kLatent, dtype, b.context));
  }
  MlaPrefillParams p;
  p.q_stride = int64_t{heads} * (kNope + kRope);
  p.q = bench::RandomDevice(tokens * p.q_stride, DType::kBF16, b.context);
  p.out = bench::DeviceBytes(tokens * heads * kV * 2);
  p.rows = {.rows = bench::Upload(rows), .host_rows = rows.data(), .num_rows = batch,
            .block_tables = bench::Upload(b.blocks), .tokens = static_cast<int>(tokens),
            .max_row_tokens = queries, .max_context = queries};
  p.cache = b.cache;
  p.heads = heads;
  p.latent_rank = kLatent;
  p.nope_dim = kNope;
  p.rope_dim = kRope;
  p.v_dim = kV;
  p.scale = 1 / std::sqrt(float{kNope + kRope});
  const double us = bench::MedianMicros(2 * kLayers, [&](int i) {
    p.w_uk = up[static_cast<size_t>(i % kLayers)].get();
    p.w_uv = values[static_cast<size_t>(i % kLayers)].get();
    MlaPrefill(p, b.context);
  }, b.context);
  std::printf("prefill %-7s %3d heads, %d x %5d: %8.1f us\n", DTypeName(dtype).data(), heads, batch,
              queries, us);
}

// What rotates and stores latent rows, and attention of prompts with its projections.
void Around(Bench& b) {
  for (const int tokens : {1, 64, 256, 2048, 8192}) Input(b, 16, tokens);
  Input(b, 128, 2048);
  for (const DType dtype : {DType::kBF16, DType::kF8E4M3}) {
    Prefill(b, dtype, 16, 1, 2048);
    Prefill(b, dtype, 16, 4, 2048);
    Prefill(b, dtype, 128, 1, 2048);
  }
}

using Part = void (*)(Bench&);

void Run(const std::vector<Part>& parts) {
  Bench b;
  for (const Part part : parts) part(b);
}

void Flashes(Bench& b) {
  for (const MlaPath path : {MlaPath::kMma, MlaPath::kWgmma}) {
    Flash(b, path, 16, 1, 0, 2048);
    Flash(b, path, 16, 4, 0, 2048);
    Flash(b, path, 16, 1, 0, 8192);
    Flash(b, path, 16, 1, 6144, 2048);
    Flash(b, path, 128, 1, 0, 2048);
  }
}

}  // namespace
}  // namespace hadal::cuda

// With "decode" or "around", what is around the kernels of attention, only that.
int main(int argc, char** argv) {
  using namespace hadal::cuda;
  const std::string only = argc > 1 ? argv[1] : "";
  std::vector<Part> parts = {Decodes, Flashes, Around};
  if (only == "decode") parts = {Decodes};
  if (only == "around") parts = {Around};
  return hadal::bench::RunBench([&] { Run(parts); });
}
