#include "kernels/cpu/packed_weight.h"

#include <algorithm>
#include <cstring>

#include "common/check.h"
#include "common/rounding.h"

namespace hadal {
namespace {

// Shape of the packed form; `phase` is where in its scale block input 0 stands.
void SetShape(CpuPackedWeight* w, int64_t n, int64_t k, DType dtype, int64_t scale_block,
              int64_t phase) {
  w->n = n;
  w->k = k;
  w->dtype = dtype;
  w->panels = CeilDiv(n, kPanel);
  if (dtype == DType::kF32) {
    w->steps = k;
    w->panel_bytes = k * kPanel * 4;
  } else if (dtype == DType::kBF16) {
    w->steps = CeilDiv(k, 2);
    w->panel_bytes = w->steps * kPanel * 2 * 2;
  } else {
    const int64_t first = std::min(k, scale_block - phase);
    w->lead = first % 2 == 1 && first < k ? first : 0;
    w->first_steps = CeilDiv(first, 2);
    w->block_steps = scale_block / 2;
    w->blocks = 1 + CeilDiv(k - first, scale_block);
    w->steps = k / 2 + 1;  // with or without an inserted zero
    w->panel_bytes = w->steps * kPanel * 2;
  }
  // One block more than phase 0 needs, so that the size does not depend on the phase.
  const int64_t scales = dtype == DType::kF8E4M3 ? CeilDiv(k, scale_block) + 1 : 0;
  w->bytes = w->panels * (w->panel_bytes + scales * kPanel * 4);
}

// Where one output's inputs lie: element j at data + j * stride.
struct Column {
  const char* data = nullptr;    // null: padding
  int64_t stride = 0;            // elements
  const WeightSource* source = nullptr;
  int64_t index = 0;             // of the output in its source
};

Column FindColumn(const std::vector<WeightSource>& sources, int64_t n) {
  for (const WeightSource& source : sources) {
    if (n < source.n) {
      const int64_t offset = source.transposed ? n : n * source.row_stride;
      return {static_cast<const char*>(source.data) + offset * DTypeSize(source.dtype),
              source.transposed ? source.row_stride : 1, &source, n};
    }
    n -= source.n;
  }
  return {};
}

// Copies inputs [begin, end) of all 16 columns to dst[(j - begin + at) / per][column][... % per].
template <typename T, int kPerStep>
void CopyInputs(const Column* columns, int64_t begin, int64_t end, int64_t at, T* dst) {
  constexpr int64_t kTile = 128;  // inputs; keeps the written steps in the first-level cache
  for (int64_t tile = begin; tile < end; tile += kTile) {
    const int64_t tile_end = std::min(end, tile + kTile);
    for (int c = 0; c < kPanel; ++c) {
      if (columns[c].data == nullptr) continue;
      const T* src = reinterpret_cast<const T*>(columns[c].data);
      for (int64_t j = tile; j < tile_end; ++j) {
        const int64_t slot = j - begin + at;
        dst[(slot / kPerStep * kPanel + c) * kPerStep + slot % kPerStep] =
            src[j * columns[c].stride];
      }
    }
  }
}

void CopyScales(const CpuPackedWeight& w, const Column* columns, float* scales) {
  for (int c = 0; c < kPanel; ++c) {
    if (columns[c].data == nullptr) continue;
    const WeightSource& s = *columns[c].source;
    for (int64_t b = 0; b < w.blocks; ++b) {
      const int64_t k_offset = s.transposed ? s.row_offset : s.col_offset;
      const int64_t k_block = k_offset / s.scale_block + b;
      const int64_t n_offset = s.transposed ? s.col_offset : s.row_offset;
      const int64_t n_block = (n_offset + columns[c].index) / s.scale_block;
      scales[b * kPanel + c] = s.transposed ? s.scale[k_block * s.scale_stride + n_block]
                                            : s.scale[n_block * s.scale_stride + k_block];
    }
  }
}

void PackPanel(const CpuPackedWeight& w, const StackedSource& sources, int64_t panel, char* data) {
  Column columns[kPanel];
  for (int c = 0; c < kPanel; ++c) columns[c] = FindColumn(sources, panel * kPanel + c);
  char* dst = data + panel * w.panel_bytes;
  std::memset(dst, 0, static_cast<size_t>(w.panel_bytes));
  if (w.dtype == DType::kF32) {
    CopyInputs<float, 1>(columns, 0, w.k, 0, reinterpret_cast<float*>(dst));
  } else if (w.dtype == DType::kBF16) {
    CopyInputs<uint16_t, 2>(columns, 0, w.k, 0, reinterpret_cast<uint16_t*>(dst));
  } else {
    auto* codes = reinterpret_cast<uint8_t*>(dst);
    CopyInputs<uint8_t, 2>(columns, 0, w.lead, 0, codes);
    CopyInputs<uint8_t, 2>(columns, w.lead, w.k, w.lead == 0 ? 0 : w.lead + 1, codes);
    float* scales = const_cast<float*>(w.scale) + panel * w.blocks * kPanel;
    std::fill(scales, scales + w.blocks * kPanel, 0.0f);
    CopyScales(w, columns, scales);
  }
}

int64_t Phase(const WeightSource& source) {
  if (source.dtype != DType::kF8E4M3) return 0;
  HADAL_CHECK(source.scale != nullptr, "an FP8 source needs its scales");
  HADAL_CHECK(source.scale_block > 0 && source.scale_block % 2 == 0, "scale_block {}",
              source.scale_block);
  return (source.transposed ? source.row_offset : source.col_offset) % source.scale_block;
}

// Everything but where it lies.
CpuPackedWeight Describe(const StackedSource& sources) {
  HADAL_CHECK(!sources.empty(), "nothing to pack");
  const WeightSource& first = sources.front();
  const int64_t phase = Phase(first);
  int64_t n = 0;
  for (const WeightSource& source : sources) {
    HADAL_CHECK(source.k == first.k && source.dtype == first.dtype &&
                    Phase(source) == phase && source.scale_block == first.scale_block,
                "stacked sources differ in k, dtype or scale blocks");
    n += source.n;
  }
  CpuPackedWeight weight;
  SetShape(&weight, n, first.k, first.dtype, first.scale_block, phase);
  return weight;
}

}  // namespace

std::unique_ptr<PackedWeight> PackCpuWeight(const std::vector<StackedSource>& matrices,
                                            ThreadPool& pool) {
  HADAL_CHECK(!matrices.empty(), "nothing to pack");
  auto batch = std::make_unique<CpuWeightBatch>();
  for (const StackedSource& sources : matrices) batch->owned.push_back(Describe(sources));
  const CpuPackedWeight& first = batch->owned[0];
  const int64_t stride = CeilDiv(first.bytes, 64) * 64;
  batch->count = static_cast<int>(matrices.size());
  batch->n = first.n;
  batch->k = first.k;
  batch->dtype = first.dtype;
  batch->bytes = first.bytes * batch->count;
  batch->memory = AllocateMemory(stride * batch->count);
  for (int i = 0; i < batch->count; ++i) {
    CpuPackedWeight& w = batch->owned[static_cast<size_t>(i)];
    HADAL_CHECK(w.n == first.n && w.k == first.k && w.dtype == first.dtype,
                "matrices of one batch differ in shape");
    char* data = batch->memory.get() + i * stride;
    w.data = data;
    w.scale = reinterpret_cast<const float*>(data + w.panels * w.panel_bytes);
    const StackedSource& sources = matrices[static_cast<size_t>(i)];
    pool.ParallelFor(w.panels, 4, [&](int64_t begin, int64_t end, int) {
      for (int64_t panel = begin; panel < end; ++panel) PackPanel(w, sources, panel, data);
    });
    batch->matrices.push_back(&w);
  }
  return batch;
}

int64_t CpuPackedBytes(int64_t n, int64_t k, DType dtype, int64_t scale_block) {
  CpuPackedWeight shape;
  SetShape(&shape, n, k, dtype, scale_block, 0);
  return shape.bytes;
}

bool HasF8Nan(const uint8_t* codes, int64_t n) {
  constexpr uint64_t kLow = 0x0101010101010101u, kHigh = 0x8080808080808080u;
  int64_t i = 0;
  uint64_t found = 0;
  for (; i + 8 <= n; i += 8) {
    uint64_t word;
    std::memcpy(&word, codes + i, 8);
    // A byte is NaN when its low seven bits are all ones: then adding one carries into bit 7.
    found |= (word & ~kHigh) + kLow;
  }
  for (; i < n; ++i) found |= (codes[i] & 0x7fu) + 1u;
  return (found & kHigh) != 0;
}

}  // namespace hadal
