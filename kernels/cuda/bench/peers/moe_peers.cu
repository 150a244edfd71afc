#include <algorithm>
#include <array>
#include <cstdio>
#include <numeric>
#include <random>

#include "fmt/format.h"
#include "kernels/cuda/bench/peers/compare.h"
#include "kernels/cuda/bench/peers/moe_peers.h"
#include "kernels/cuda/device/convert.cuh"
#include "kernels/cuda/experts/moe_stream.h"
#include "kernels/cuda/experts/moe_tile.h"
#include "kernels/cuda/rows/quantise.cuh"
#include "kernels/cuda/weights/weight_view.cuh"

namespace hadal::bench {
namespace {

using cuda::bf16;
using cuda::MoeRows;

struct Shape {
  const char* what;
  int64_t dim, width;
  int experts, local_experts, top_k;
};

constexpr Shape kShapes[] = {{"V2-Lite", 2048, 1408, 64, 64, 6},
                             {"671B/8", 7168, 2048, 256, 32, 8}};

using Weights = std::array<std::unique_ptr<CudaPackedWeight>, 2>;  // take turns

// One product of one step.
struct Case {
  const Shape& s;
  DType dtype;
  bool gated;  // w1 and w3, not w2
  int tokens;
  const Weights& weights;

  bool f8() const { return dtype == DType::kF8E4M3; }
  int pairs() const { return tokens * s.top_k; }
  int k() const { return static_cast<int>(gated ? s.dim : s.width); }
  int outputs() const { return static_cast<int>(gated ? s.width : s.dim); }
  int x_rows() const { return gated ? tokens : pairs(); }
};

// Experts chosen evenly at random, and what they come to.
struct Choices {
  explicit Choices(const Case& c) : first_row(static_cast<size_t>(c.s.local_experts) + 1) {
    std::mt19937_64 rng(42);
    std::vector<int32_t> all(static_cast<size_t>(c.s.experts)), host;
    std::iota(all.begin(), all.end(), 0);
    for (int pair = 0; pair < c.pairs(); ++pair) {
      const int j = pair % c.s.top_k;
      const auto at = static_cast<size_t>(j);
      std::swap(all[at], all[at + rng() % static_cast<size_t>(c.s.experts - j)]);
      host.push_back(all[at]);
      if (all[at] < c.s.local_experts) ++first_row[static_cast<size_t>(all[at]) + 1];
    }
    std::partial_sum(first_row.begin(), first_row.end(), first_row.begin());
    ids = OwnDevice(Upload(host));
    std::vector<int32_t> index(all.size(), -1);
    std::iota(index.begin(), index.begin() + c.s.local_experts, 0);
    local = OwnDevice(Upload(index));
  }
  // In the context's scratch.
  MoeRows Sorted(const Case& c, int tile_rows, CudaContext& context, bool in_pairs = false) const {
    return cuda::SortRows(
        {static_cast<const int32_t*>(ids.get()), static_cast<const int32_t*>(local.get()),
         c.tokens, c.s.top_k, c.s.experts, c.s.local_experts},
        tile_rows, context, in_pairs);
  }
  int rows() const { return first_row.back(); }

  std::vector<int32_t> first_row;
  SharedDevice ids, local;
};

__global__ void WidenKernel(const cuda::fp8* codes, const float* scales, int k, bf16* x) {
  const int64_t row = blockIdx.x;
  for (int i = threadIdx.x; i < k; i += blockDim.x) {
    const float scale = scales[row * (k / 128) + i / 128];
    x[row * k + i] = cuda::FromFloat<bf16>(cuda::ToFloat(codes[row * k + i]) * scale);
  }
}

// Row r of `to` is row source[r] of `from`; words of 4 bytes.
__global__ void GatherKernel(const uint32_t* from, const int32_t* source, int words,
                             uint32_t* to) {
  const int64_t row = blockIdx.x, at = source[row];
  for (int i = threadIdx.x; i < words; i += blockDim.x) to[row * words + i] = from[at * words + i];
}

// The same activations in every form that a kernel wants. FP8 codes with a scale per 128 columns,
// and as bf16 what they mean.
struct Activations {
  SharedDevice wide, codes, scales;

  Activations(const Case& c, CudaContext& context) {
    const int rows = c.x_rows(), k = c.k();
    wide = OwnDevice(RandomDevice(int64_t{rows} * k, DType::kBF16, context));
    if (!c.f8()) return;
    codes = OwnDevice(DeviceBytes(int64_t{rows} * k));
    scales = OwnDevice(DeviceBytes(int64_t{rows} * (k / 128) * 4));
    auto* x = static_cast<bf16*>(wide.get());
    auto* scale = static_cast<float*>(scales.get());
    cuda::Quantise({.x = x,
                    .x_stride = k,
                    .rows = rows,
                    .columns = k,
                    .codes = static_cast<uint8_t*>(codes.get()),
                    .code_stride = k,
                    .scales = scale,
                    .scale_row_stride = k / 128,
                    .scale_block_stride = 1},
                   context);
    WidenKernel<<<static_cast<unsigned>(rows), 256, 0, context.stream>>>(
        static_cast<const cuda::fp8*>(codes.get()), scale, k, x);
    HADAL_CUDA_LAUNCHED();
  }
};

Contender Tile(const Case& c, const Choices& choices, const Activations& x, CudaContext& context) {
  cuda::TileArgs args;
  args.in_pairs = cuda::TilesInPairs(c.f8(), c.pairs(), c.s.experts);
  const MoeRows sorted = choices.Sorted(c, cuda::kTileRows, context, args.in_pairs);
  const SharedDevice out = Unwritten(int64_t{c.pairs()} * c.outputs() * 2, context);
  cuda::TilePart& part = args.experts;
  part.x = c.f8() ? x.codes.get() : x.wide.get();
  part.x_scale = static_cast<const float*>(x.scales.get());
  part.x_blocks = c.f8() ? c.k() / 128 : 0;
  part.source = c.gated ? sorted.source : nullptr;
  part.x_stride = part.k = c.k();
  part.tiles = sorted.tiles;
  part.num_tiles = sorted.num_tiles;
  part.n = part.out_stride = c.outputs();
  part.matrices = c.s.local_experts;
  part.out = static_cast<bf16*>(out.get());
  const auto run = [&context, &c, x, out, args, max_tiles = sorted.max_tiles](int call) mutable {
    args.experts.w = cuda::ViewOf(c.weights[static_cast<size_t>(call % 2)].get());
    c.f8() ? cuda::LaunchTileFp8(args, c.gated, max_tiles, context)
           : cuda::LaunchTileBf16(args, c.gated, max_tiles, context);
  };
  return {"tile", run, OutputAt(out)};
}

Contender Stream(const Case& c, const Choices& choices, const Activations& x,
                 CudaContext& context) {
  // Tiles as MoeStream() takes them.
  const int wide = c.pairs() > 20 * c.s.experts ? 64 : 32;
  const int tile = c.f8() ? cuda::kStreamF8Tokens : wide;
  const MoeRows sorted = choices.Sorted(c, tile, context);
  const DType dtype = c.gated ? DType::kBF16 : DType::kF32;
  const SharedDevice out = Unwritten(int64_t{c.pairs()} * c.outputs() * DTypeSize(dtype), context);
  cuda::StreamArgs args;
  cuda::StreamPart& part = args.experts;
  part.x = static_cast<const bf16*>(x.wide.get());
  part.source = c.gated ? sorted.source : nullptr;
  part.x_stride = part.k = c.k();
  part.tiles = sorted.tiles;
  part.num_tiles = sorted.num_tiles;
  part.n = part.out_stride = c.outputs();
  part.out = out.get();
  const int outputs = c.gated ? 64 : 128;  // of an item
  const int items = sorted.max_tiles * ((c.outputs() + outputs - 1) / outputs);
  const cuda::StreamRows rows{c.x_rows(), c.gated ? nullptr : sorted.num_rows, c.s.local_experts};
  const auto run = [&context, &c, x, out, args, rows, tile, items](int call) mutable {
    args.experts.w = cuda::ViewOf(c.weights[static_cast<size_t>(call % 2)].get());
    c.f8() ? cuda::LaunchStreamF8(args, rows, c.gated, items, context)
           : cuda::LaunchStreamBf16(args, c.gated, tile, items, context);
  };
  return {"stream", run, OutputAt(out, dtype)};
}

// CUTLASS reads the rows of an expert side by side; ours are gathered within the kernel. Gathering
// is not timed.
SharedDevice Gathered(const SharedDevice& from, int64_t row_bytes, const Case& c,
                      const Choices& choices, CudaContext& context) {
  if (!c.gated || from == nullptr) return from;
  const DeviceScratch::Scope scope(context.scratch);
  const MoeRows sorted = choices.Sorted(c, cuda::kTileRows, context);
  SharedDevice to = OwnDevice(DeviceBytes(choices.rows() * row_bytes));
  GatherKernel<<<static_cast<unsigned>(choices.rows()), 256, 0, context.stream>>>(
      static_cast<const uint32_t*>(from.get()), sorted.source, static_cast<int>(row_bytes / 4),
      static_cast<uint32_t*>(to.get()));
  HADAL_CUDA_LAUNCHED();
  return to;
}

std::vector<Contender> Cutlass(const Case& c, const Choices& choices, const Activations& x,
                               CudaContext& context) {
  const int64_t rows = choices.rows(), n = c.weights[0]->n;
  const SharedDevice in =
      Gathered(c.f8() ? x.codes : x.wide, c.k() * DTypeSize(c.dtype), c, choices, context);
  const SharedDevice scales = Gathered(x.scales, c.k() / 128 * 4, c, choices, context);
  const SharedDevice y = Unwritten(rows * n * 2, context);
  const SharedDevice hidden = Unwritten(c.gated ? rows * c.outputs() * 2 : 4, context);
  HADAL_CUDA(cudaStreamSynchronize(context.stream));
  std::array<std::vector<Peer>, 2> peers;
  for (size_t i = 0; i < peers.size(); ++i) {
    const GroupedProduct p{c.weights[i].get(), in.get(), static_cast<const float*>(scales.get()),
                           choices.first_row, y.get()};
    peers[i] = c.f8() ? CutlassGroupedF8(p) : CutlassGroupedBf16(p);
  }
  std::vector<Contender> contenders;
  for (size_t i = 0; i < peers[0].size(); ++i) {
    const auto run = [&context, in, a = peers[0][i].run, b = peers[1][i].run](int call) {
      (call % 2 == 0 ? a : b)(context.stream);
    };
    const auto output = [&context, &c, y, hidden, rows] {
      if (!c.gated) return Output{y.get(), DType::kBF16};
      cuda::SiluMul(y.get(), hidden.get(), static_cast<int>(rows), c.s.width, context);
      return Output{hidden.get(), DType::kBF16};
    };
    contenders.push_back({"CUTLASS " + peers[0][i].name, run, output});
  }
  return contenders;
}

void CompareCase(const Case& c, CudaContext& context) {
  const DeviceScratch::Scope scope(context.scratch);
  const Choices choices(c);
  const Activations x(c, context);
  Comparison comparison{.what = fmt::format("{} {} {}, {} tokens", c.s.what, DTypeName(c.dtype),
                                            c.gated ? "w1+w3" : "w2", c.tokens),
                        .count = int64_t{choices.rows()} * c.outputs(),
                        .calls = c.tokens > 512 ? 4 : 20};
  comparison.ours.push_back(Tile(c, choices, x, context));
  if (c.pairs() <= 64 * c.s.experts) comparison.ours.push_back(Stream(c, choices, x, context));
  comparison.theirs = Cutlass(c, choices, x, context);
  Compare(comparison, context);
}

}  // namespace

void CompareExperts(DType dtype, CudaContext& context) {
  for (const Shape& s : kShapes) {
    for (const bool gated : {true, false}) {
      const int64_t n = gated ? 2 * s.width : s.dim, k = gated ? s.dim : s.width;
      const Weights weights = {RandomWeight(s.local_experts, n, k, dtype, context),
                               RandomWeight(s.local_experts, n, k, dtype, context)};
      for (const int tokens : {64, 256, 2048, 8192}) {
        CompareCase({s, dtype, gated, tokens, weights}, context);
      }
    }
  }
  std::printf("w1+w3: ours gather rows and gate; CUTLASS finds rows gathered, does not gate\n");
}

}  // namespace hadal::bench
