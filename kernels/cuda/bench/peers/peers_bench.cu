#include <algorithm>
#include <cmath>
#include <cstdio>
#include <numeric>
#include <random>

#include "fmt/format.h"
#include "kernels/cuda/attention/mla_paths.h"
#include "kernels/cuda/bench/peers/compare.h"
#include "kernels/cuda/bench/peers/moe_peers.h"
#include "kernels/cuda/device/convert.cuh"

// Products and attention beside CUTLASS and FlashInfer: the same operands, cold cache, results
// compared before anything is timed.
namespace hadal::bench {
namespace {

constexpr int kLatent = 512, kRope = 64, kDim = kLatent + kRope, kNope = 128;
constexpr int64_t kPoolBlocks = 40000;  // 2.9 GB of latent cache

void CompareDense(int64_t n, int64_t k, int m, const Ceilings& ceilings, CudaContext& context) {
  std::vector<std::unique_ptr<CudaPackedWeight>> weights;
  const int sets = ColdSets(ceilings, n * k * 2, 100);
  for (int i = 0; i < sets; ++i) weights.push_back(RandomWeight(1, n, k, DType::kBF16, context));
  const SharedDevice x = OwnDevice(RandomDevice(m * k, DType::kBF16, context));
  const SharedDevice ours = Unwritten(m * n * 2, context);
  const SharedDevice theirs = Unwritten(m * n * 2, context);
  const auto product = [&](int call, const SharedDevice& y) {
    return cuda::Product{.x = x.get(),
                         .x_stride = k,
                         .x_matrix_stride = k,
                         .w = weights[static_cast<size_t>(call % sets)].get(),
                         .y = y.get(),
                         .y_stride = n,
                         .y_matrix_stride = n,
                         .m = m};
  };
  Comparison c{.what = fmt::format("dense [{}, {}], {} rows", n, k, m),
               .count = m * n,
               .calls = std::max(20, sets)};
  c.ours.push_back({"chosen", [&](int call) { cuda::RunProduct(product(call, ours), context); },
                    OutputAt(ours)});
  std::vector<std::vector<Peer>> peers;
  for (int i = 0; i < sets; ++i) {
    peers.push_back(CutlassDense(product(i, theirs)));
    for (Peer& peer : CutlassStreamK(product(i, theirs))) peers.back().push_back(std::move(peer));
  }
  for (size_t i = 0; i < peers[0].size(); ++i) {
    c.theirs.push_back(
        {"CUTLASS " + peers[0][i].name,
         [&, i](int call) { peers[static_cast<size_t>(call % sets)][i].run(context.stream); },
         OutputAt(theirs)});
  }
  Compare(c, context);
}

// Random keys in blocks that lie anywhere.
struct LatentCache {
  explicit LatentCache(CudaContext& context)
      : data(OwnDevice(RandomDevice(kPoolBlocks * kBlockSize * kDim, DType::kBF16, context))) {
    std::vector<int32_t> blocks(kPoolBlocks);
    std::iota(blocks.begin(), blocks.end(), 0);
    std::shuffle(blocks.begin(), blocks.end(), std::mt19937(7));
    tables = OwnDevice(Upload(blocks));
  }
  SharedDevice data, tables;
};

void CompareDecode(const LatentCache& cache, int heads, int batch, int length,
                   const Ceilings& ceilings, CudaContext& context) {
  const int row_blocks = (length + kBlockSize - 1) / kBlockSize;
  const int64_t pairs = int64_t{batch} * heads;
  const int sets = ColdSets(ceilings, int64_t{batch} * length * kDim * 2, 300);
  const int variants =
      static_cast<int>(std::clamp<int64_t>(kPoolBlocks / (int64_t{batch} * row_blocks), 1, sets));
  std::vector<AttentionRow> rows;
  for (int i = 0; i < variants * batch; ++i) {
    rows.push_back({i % batch, 1, length - 1, i * row_blocks});
  }
  const SharedDevice device_rows = OwnDevice(Upload(rows));
  const SharedDevice q_latent = OwnDevice(RandomDevice(pairs * kLatent, DType::kBF16, context));
  const SharedDevice q_rope =
      OwnDevice(RandomDevice(pairs * (kNope + kRope), DType::kBF16, context));
  const SharedDevice ours = Unwritten(pairs * kLatent * 2, context);
  const SharedDevice theirs = Unwritten(pairs * kLatent * 2, context);
  const auto* tables = static_cast<const int32_t*>(cache.tables.get());
  MlaDecodeParams p{.q_latent = q_latent.get(),
                    .q_rope = q_rope.get(),
                    .q_rope_stride = int64_t{heads} * (kNope + kRope),
                    .q_rope_head_stride = kNope + kRope,
                    .out = ours.get(),
                    .rows = {.num_rows = batch,
                             .block_tables = tables,
                             .tokens = batch,
                             .max_row_tokens = 1,
                             .max_context = length},
                    .cache = cache.data.get(),
                    .heads = heads,
                    .latent_rank = kLatent,
                    .rope_dim = kRope,
                    .scale = 1 / std::sqrt(float{kNope + kRope})};
  const DecodePeer peer = FlashInferDecode(p, length, theirs.get());
  Compare({.what = fmt::format("decode {} heads, {} x {}", heads, batch, length),
           .count = pairs * kLatent,
           .calls = std::max(sets, 20),
           .ours = {{"chosen",
                     [&](int call) {
                       p.rows.rows = static_cast<const AttentionRow*>(device_rows.get()) +
                                     call % variants * batch;
                       cuda::MlaDecodeWith(cuda::MlaPath::kAuto, p, context);
                     },
                     OutputAt(ours)}},
           .theirs = {{"FlashInfer",
                       [&](int call) {
                         peer(tables + int64_t{call % variants} * batch * row_blocks,
                              context.stream);
                       },
                       OutputAt(theirs)}}},
          context);
}

void CompareDecodes(const Ceilings& ceilings, CudaContext& context) {
  const LatentCache cache(context);
  for (const int heads : {16, 128}) {
    for (const auto& [batch, length] : std::vector<std::pair<int, int>>{
             {1, 512}, {8, 512}, {64, 512}, {128, 512}, {256, 512}, {64, 8192}}) {
      CompareDecode(cache, heads, batch, length, ceilings, context);
    }
  }
}

void CompareDenses(const Ceilings& ceilings, CudaContext& context) {
  for (const int64_t n : {21888, 3648}) {
    for (const int m : {1, 64, 2048}) CompareDense(n, 2048, m, ceilings, context);
  }
}

struct Part {
  std::string name;
  std::function<void(const Ceilings&, CudaContext&)> run;
};

const std::vector<Part>& Parts() {
  static const std::vector<Part> parts = {
      {"decode", CompareDecodes},
      {"dense", CompareDenses},
      {"experts-bf16", [](const Ceilings&, CudaContext& c) { CompareExperts(DType::kBF16, c); }},
      {"experts-fp8", [](const Ceilings&, CudaContext& c) { CompareExperts(DType::kF8E4M3, c); }}};
  return parts;
}

void Run(const std::vector<std::string>& names) {
  CudaContext& context = BenchContext(int64_t{1} << 30);
  if (context.arch != 90) {
    std::printf("skipped: the peers' kernels take Hopper\n");
    return;
  }
  const Ceilings ceilings = MeasureCeilings(context);
  std::printf("%s: read %.0f GB/s, bf16 GEMM %.0f TFLOP/s\n", ceilings.card.c_str(),
              ceilings.read_gbs, ceilings.bf16_tflops);
  PrintComparisonHeader();
  for (const Part& part : Parts()) {
    if (names.empty() || std::ranges::count(names, part.name) > 0) part.run(ceilings, context);
  }
}

int Main(const std::vector<std::string>& names) {
  for (const std::string& name : names) {
    if (std::ranges::count(Parts(), name, &Part::name) > 0) continue;
    std::printf(
        "hadal-cuda-peers-bench [PART ...]: times our kernels beside CUTLASS and FlashInfer.\n"
        "PART: decode, dense, experts-bf16, experts-fp8; all when none is given.\n");
    return name == "--help" ? 0 : 2;
  }
  return RunBench([&] { Run(names); });
}

}  // namespace
}  // namespace hadal::bench

int main(int argc, char** argv) { return hadal::bench::Main({argv + 1, argv + argc}); }
