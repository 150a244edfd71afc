#include <algorithm>

#include "common/check.h"
#include "common/rounding.h"
#include "kernels/cuda/attention/mla_expand.cuh"
#include "kernels/cuda/attention/mla_general.cuh"
#include "kernels/cuda/attention/mla_prefill.cuh"
#include "kernels/cuda/attention/ops.h"
#include "kernels/cuda/device/convert.cuh"
#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/products/matmul.h"
#include "kernels/cuda/products/ops.h"

namespace hadal::cuda {
namespace {

constexpr int kGroupHeads = 16;  // the fewest (but for a remainder) that make up a group
constexpr int kWarps = 4;        // of the general kernel: one query each

// How much of a context of `all_keys` is projected up at once: rather all keys of few heads than
// few keys of all heads, and all of both where they fit.
struct PieceSize {
  int group_heads;
  int keys;

  PieceSize(int heads, int nope_dim, int v_dim, int64_t all_keys, DType act, int64_t piece_bytes) {
    const int64_t bytes = int64_t{nope_dim + v_dim} * DTypeSize(act);  // of one key of one head
    const int64_t all = std::max<int64_t>((all_keys + kBlockSize - 1) / kBlockSize, 1) * kBlockSize;
    const int64_t fitting_heads = piece_bytes / (all * bytes) / kGroupHeads * kGroupHeads;
    group_heads =
        static_cast<int>(std::clamp<int64_t>(fitting_heads, std::min(heads, kGroupHeads), heads));
    const int64_t fitting_keys =
        std::max<int64_t>(piece_bytes / (group_heads * bytes), kBlockSize) / kBlockSize *
        kBlockSize;
    keys = static_cast<int>(std::min(fitting_keys, all));
  }
};

// Cuts rows into pieces; a row that fits into one piece is not cut.
class PiecePlan {
 public:
  PiecePlan(const AttentionRows& rows, int max_keys, int tile)
      : rows_(rows), max_keys_(max_keys), tile_(tile) {}

  // False: all rows have been given out.
  bool Next(PrefillPiece& piece) {
    piece.count = piece.keys = piece.tiles = 0;
    for (; row_ < rows_.num_rows && piece.count < kMaxSegments; ++row_, key_ = 0) {
      const AttentionRow& row = rows_.host_rows[row_];
      if (row.num_tokens == 0) continue;
      const int end = row.start_pos + row.num_tokens;
      if (piece.keys > 0 && end - key_ > max_keys_ - piece.keys) return true;
      const int taken = std::min(end - key_, max_keys_);
      piece.segments[piece.count++] = {row, key_, key_ + taken, piece.keys, piece.tiles};
      piece.keys += taken;
      piece.tiles += (row.num_tokens + tile_ - 1) / tile_;
      if (key_ + taken < end) {
        key_ += taken;
        return true;
      }
    }
    return piece.count > 0;
  }

 private:
  const AttentionRows& rows_;
  const int max_keys_;
  const int tile_;
  int row_ = 0;
  int key_ = 0;
};

template <typename T>
struct ExpandedKeys {
  const PrefillArgs& p;
  int64_t first_key;  // of the segment, in the scratch
  int head;

  __device__ int64_t Row(int key) const { return (first_key + key) * p.group_heads + head; }
  __device__ const T* Nope(int key) const {
    return static_cast<const T*>(p.k) + Row(key) * p.nope_dim;
  }
  __device__ const T* Rope(int key) const {
    return static_cast<const T*>(p.k_rope) + (first_key + key) * p.k_rope_stride;
  }
  __device__ const T* Value(int key) const {
    return static_cast<const T*>(p.v) + Row(key) * p.v_dim;
  }
};

// Grid: (query tile, head of the group); one warp per query.
template <typename Act>
__global__ void GeneralPrefillKernel(const __grid_constant__ PrefillArgs p,
                                     const __grid_constant__ PrefillPiece piece) {
  extern __shared__ float shared[];
  AllowNext();
  WaitForPrevious();
  const PrefillSegment& s = piece.segments[SegmentOfTile(piece, blockIdx.x)];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, head = blockIdx.y;
  const int query = (static_cast<int>(blockIdx.x) - s.first_tile) * kWarps + warp;
  const int keys = s.row.start_pos + query + 1;  // that the query sees
  if (query >= s.row.num_tokens || keys <= s.key_begin) return;
  const int64_t token = s.row.first_token + query;
  const int64_t state = token * p.group_heads + head;
  const int qk_dim = p.nope_dim + p.rope_dim;
  float* q = shared + warp * (qk_dim + p.v_dim + 32);
  float* o = q + qk_dim;
  const Act* q_in = static_cast<const Act*>(p.q) + token * p.q_stride + head * qk_dim;
  for (int i = lane; i < qk_dim; i += 32) q[i] = ToFloat(q_in[i]);
  const bool first = s.key_begin == 0;
  for (int i = lane; i < p.v_dim; i += 32) o[i] = first ? 0.0f : p.state_o[state * p.v_dim + i];
  SoftmaxState softmax;
  if (!first) softmax = {p.state_ml[state].x, p.state_ml[state].y};
  __syncwarp();
  const ExpandedKeys<Act> expanded{p, s.first_key, head};
  WarpAttend(expanded, 0, min(keys, s.key_end) - s.key_begin, q, p.nope_dim, p.rope_dim, p.v_dim,
             p.scale_log2, o, o + p.v_dim, softmax);
  if (keys <= s.key_end) {
    Act* out = static_cast<Act*>(p.out) + token * p.out_stride + head * p.v_dim;
    for (int i = lane; i < p.v_dim; i += 32) out[i] = FromFloat<Act>(o[i] / softmax.l);
  } else {
    for (int i = lane; i < p.v_dim; i += 32) p.state_o[state * p.v_dim + i] = o[i];
    if (lane == 0) p.state_ml[state] = make_float2(softmax.m, softmax.l);
  }
}

template <typename Act>
void GeneralPrefillPiece(const PrefillArgs& args, const PrefillPiece& piece, CudaContext& context) {
  const size_t shared =
      size_t{kWarps} * (args.nope_dim + args.rope_dim + args.v_dim + 32) * sizeof(float);
  HADAL_CHECK(shared <= 48 * 1024, "head dims {} + {}, {}", args.nope_dim, args.rope_dim,
              args.v_dim);
  Launch(GeneralPrefillKernel<Act>, dim3(piece.tiles, args.group_heads), dim3(kWarps * 32), shared,
         context, args, piece);
  HADAL_CUDA_LAUNCHED();
}

void AttendPiece(MlaPath path, const PrefillArgs& args, const PrefillPiece& piece,
                 CudaContext& context) {
  if (path == MlaPath::kWgmma) return WgmmaPrefillPiece(args, piece, context);
  if (path == MlaPath::kMma) return MmaPrefillPiece(args, piece, context);
  HADAL_CHECK(path == MlaPath::kGeneral);
  context.act == DType::kF32 ? GeneralPrefillPiece<float>(args, piece, context)
                             : GeneralPrefillPiece<__nv_bfloat16>(args, piece, context);
}

struct Buffers {
  void* latent = nullptr;  // [keys, latent_rank + rope_dim]
  void* k = nullptr;
  void* v = nullptr;
  float* state_o = nullptr;
  float2* state_ml = nullptr;

  Buffers(const MlaPrefillParams& p, const PieceSize& size, bool state, CudaContext& context) {
    DeviceScratch& scratch = context.scratch;
    const int64_t element = DTypeSize(context.act), keys = size.keys, heads = size.group_heads;
    latent = scratch.Allocate<char>(keys * (p.latent_rank + p.rope_dim) * element);
    k = scratch.Allocate<char>(keys * heads * p.nope_dim * element);
    v = scratch.Allocate<char>(keys * heads * p.v_dim * element);
    if (state) {
      state_o = scratch.Allocate<float>(p.rows.tokens * heads * p.v_dim);
      state_ml = scratch.Allocate<float2>(p.rows.tokens * heads);
    }
  }
};

PrefillArgs ArgsOfGroup(const MlaPrefillParams& p, const Buffers& buffers,
                        const QuantiseParams& rounded, int head, int heads, DType act) {
  const int64_t element = DTypeSize(act);
  const int64_t qk_dim = p.nope_dim + p.rope_dim;
  PrefillArgs args;
  args.q = static_cast<const char*>(p.q) + head * qk_dim * element;
  args.q_stride = p.q_stride;
  args.out = static_cast<char*>(p.out) + int64_t{head} * p.v_dim * element;
  args.out_stride = int64_t{p.heads} * p.v_dim;
  args.rounded = rounded;
  if (rounded.rows > 0) {
    args.rounded.codes += int64_t{head} * p.v_dim;
    args.rounded.scales += head * rounded.scale_block_stride;
  }
  args.group_heads = heads;
  args.nope_dim = p.nope_dim;
  args.rope_dim = p.rope_dim;
  args.v_dim = p.v_dim;
  args.scale_log2 = p.scale * kLog2E;
  args.k = buffers.k;
  args.v = buffers.v;
  args.k_rope = static_cast<char*>(buffers.latent) + p.latent_rank * element;
  args.k_rope_stride = p.latent_rank + p.rope_dim;
  args.state_o = buffers.state_o;
  args.state_ml = buffers.state_ml;
  return args;
}

MlaPath Choose(const MlaPrefillParams& p, const CudaContext& context) {
  if (WgmmaPrefillAllowed(p, context)) return MlaPath::kWgmma;
  return MmaPrefillAllowed(p, context) ? MlaPath::kMma : MlaPath::kGeneral;
}

int TileOf(MlaPath path) {
  if (path == MlaPath::kWgmma) return WgmmaPrefillTile();
  return path == MlaPath::kMma ? MmaPrefillTile() : kWarps;
}

void Attend(MlaPath path, const MlaPrefillParams& p, const QuantiseParams& rounded,
            CudaContext& context, int64_t piece_bytes) {
  HADAL_CHECK(p.cache_dtype != DType::kF8E4M3, "the latent cache is bf16 or f32");
  if (p.rows.tokens == 0 || p.heads == 0) return;
  if (path == MlaPath::kAuto) path = Choose(p, context);
  int64_t all_keys = 0, longest = 0;
  for (int r = 0; r < p.rows.num_rows; ++r) {
    const AttentionRow& row = p.rows.host_rows[r];
    if (row.num_tokens == 0) continue;
    all_keys += row.start_pos + row.num_tokens;
    longest = std::max<int64_t>(longest, row.start_pos + row.num_tokens);
  }
  const PieceSize size(p.heads, p.nope_dim, p.v_dim, all_keys, context.act, piece_bytes);
  DeviceScratch::Scope scope(context.scratch);
  const Buffers buffers(p, size, longest > size.keys, context);
  PrefillPiece piece;
  for (int head = 0; head < p.heads; head += size.group_heads) {
    DeviceScratch::Scope group_scope(context.scratch);
    const int heads = std::min(size.group_heads, p.heads - head);
    const HeadsView w_uk(*p.w_uk, head, heads, context), w_uv(*p.w_uv, head, heads, context);
    const PrefillArgs args = ArgsOfGroup(p, buffers, rounded, head, heads, context.act);
    PiecePlan plan(p.rows, size.keys, TileOf(path));
    while (plan.Next(piece)) {
      GatherLatent(p, piece, buffers.latent, context);
      ProjectUp(p, piece.keys, buffers.latent, w_uk.matrix(), buffers.k, context);
      ProjectUp(p, piece.keys, buffers.latent, w_uv.matrix(), buffers.v, context);
      AttendPiece(path, args, piece, context);
    }
  }
}

// The rows that attention can leave as the product behind it takes them.
int RoundedRows(const MlaPrefillParams& p, const Product& out, const CudaContext& context) {
  const bool fits = Choose(p, context) != MlaPath::kGeneral && out.m == p.rows.tokens &&
                    out.x_stride == int64_t{p.heads} * p.v_dim && out.w->k == out.x_stride;
  return fits ? RowsInF8(out, context) : 0;
}

}  // namespace

void MlaPrefillWith(MlaPath path, const MlaPrefillParams& p, CudaContext& context,
                    int64_t piece_bytes) {
  Attend(path, p, {}, context, piece_bytes);
}

void MlaPrefill(const MlaPrefillParams& p, CudaContext& context) {
  MlaPrefillWith(MlaPath::kAuto, p, context);
}

void MlaPrefillAndMatMul(const MlaPrefillParams& p, const MatMulParams& out, CudaContext& context) {
  HADAL_CHECK(out.x == p.out);
  const Product product = ProductOf(out);
  if (const int rows = RoundedRows(p, product, context); rows > 0) {
    DeviceScratch::Scope scope(context.scratch);
    const QuantiseParams rounded = CublasF8Operand(product, rows, context);
    Attend(MlaPath::kAuto, p, rounded, context, kPrefillPieceBytes);
    if (RunCublasF8(product, rounded, context)) return;
  }
  MlaPrefill(p, context);
  MatMul(out, context);
}

int64_t PrefillScratchBytes(const OpLimits& limits, DType act) {
  // The most keys, when groups are small; an op with fewer keys may take more heads instead.
  const int64_t few = std::min(limits.heads, kGroupHeads), element = DTypeSize(act);
  const PieceSize size(static_cast<int>(few), limits.nope_dim, limits.v_dim,
                       limits.tokens * limits.max_context, act, kPrefillPieceBytes);
  const int64_t keys = size.keys;
  const int64_t key_bytes = few * (limits.nope_dim + limits.v_dim) * element;
  const auto aligned = DeviceScratch::Aligned;
  int64_t bytes = aligned(keys * (limits.latent_rank + limits.rope_dim) * element) +
                  aligned(std::max(kPrefillPieceBytes, keys * key_bytes)) + DeviceScratch::kAlign;
  if (limits.max_context > keys) {
    bytes += aligned(limits.tokens * few * limits.v_dim * 4) + aligned(limits.tokens * few * 8);
  }
  bytes += HeadsView::ScratchBytes(limits.heads, limits.nope_dim, limits.latent_rank, act) +
           HeadsView::ScratchBytes(limits.heads, limits.v_dim, limits.latent_rank, act);
  OpLimits projection = limits;
  projection.tokens = size.keys;
  projection.mlp_width = 0;
  // Beside rounded outputs.
  const int64_t width = int64_t{limits.heads} * limits.v_dim;
  bytes += aligned(limits.tokens * width) + aligned(limits.tokens * CeilDiv(width, 128) * 4);
  return bytes + MatMulScratchBytes(projection, act);
}

int64_t AttentionScratchBytes(const OpLimits& limits, DType act) {
  if (limits.heads == 0) return 0;
  return std::max(DecodeScratchBytes(limits), PrefillScratchBytes(limits, act));
}

}  // namespace hadal::cuda
