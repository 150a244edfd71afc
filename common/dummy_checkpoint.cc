#include "common/dummy_checkpoint.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <functional>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "common/random_weights.h"
#include "common/tensor_inventory.h"
#include "common/threads.h"

namespace hadal {
namespace {

constexpr float kF8Scale = kRandomDeviation / kRandomF8Deviation;
constexpr int64_t kVariety = int64_t{32} << 20;  // bytes of a pool beyond its largest tensor
constexpr int64_t kAlign = 64;

enum class Fill { kNormal, kOnes, kZeros, kScales };

Fill FillOf(const ExpectedTensor& tensor) {
  const auto ends = [&](std::string_view suffix) {
    return std::string_view(tensor.name).ends_with(suffix);
  };
  if (ends("norm.weight")) return Fill::kOnes;
  if (ends("weight_scale_inv")) return Fill::kScales;
  return ends("e_score_correction_bias") ? Fill::kZeros : Fill::kNormal;
}

// REQUIRES: count is even.
template <typename T>
void FillNormals(std::byte* data, int64_t count, uint64_t seed) {
  const int threads = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  T* const to = reinterpret_cast<T*>(data);
  std::atomic<int> next{0};
  RunOnThreads(threads, [&] {
    for (int t; (t = next++) < threads;) {
      const Range own = SplitRange(count / 2, threads, t);
      for (int64_t i = own.begin; i < own.end; ++i) {
        const std::array<float, 2> pair = StandardNormals(seed, static_cast<uint64_t>(i));
        to[2 * i] = FromStandardNormal<T>(pair[0]);
        to[2 * i + 1] = FromStandardNormal<T>(pair[1]);
      }
    }
  });
}

void FillNormals(std::byte* data, int64_t count, DType dtype, uint64_t seed) {
  switch (dtype) {
    case DType::kF32: return FillNormals<float>(data, count, seed);
    case DType::kBF16: return FillNormals<bf16_t>(data, count, seed);
    case DType::kF8E4M3: return FillNormals<uint8_t>(data, count, seed);
  }
}

void FillConstant(std::byte* data, int64_t count, DType dtype, float value) {
  for (int64_t i = 0; i < count; ++i) {
    if (dtype == DType::kF32) {
      std::memcpy(data + i * 4, &value, 4);
    } else {
      const bf16_t half = FloatToBf16(value);
      std::memcpy(data + i * 2, &half, 2);
    }
  }
}

// Values of one kind and type, from which tensors are cut.
struct Pool {
  int64_t begin = 0;  // in the memory of all
  int64_t bytes = 0;
};
using PoolKey = std::pair<Fill, DType>;

int64_t Bytes(const ExpectedTensor& tensor) {
  int64_t count = 1;
  for (const int64_t dim : tensor.shape) count *= dim;
  return count * DTypeSize(tensor.dtypes.front());
}

void FillPool(const PoolKey& key, std::byte* data, int64_t bytes, uint64_t seed) {
  const int64_t count = bytes / DTypeSize(key.second);
  switch (key.first) {
    case Fill::kNormal: return FillNormals(data, count, key.second, seed);
    case Fill::kOnes: return FillConstant(data, count, key.second, 1);
    case Fill::kZeros: return FillConstant(data, count, key.second, 0);
    case Fill::kScales: return FillConstant(data, count, key.second, kF8Scale);
  }
}

Checkpoint::Entry EntryAt(const ExpectedTensor& tensor, int64_t at, const SafetensorsFile* file) {
  const DType dtype = tensor.dtypes.front();
  const auto begin = static_cast<uint64_t>(at);
  const TensorInfo info{.name = tensor.name, .dtype_name = std::string(DTypeName(dtype)),
                        .dtype = dtype, .shape = tensor.shape, .begin = begin,
                        .end = begin + static_cast<uint64_t>(Bytes(tensor))};
  return {.info = info, .file = file, .rows = {0, tensor.shape[0]},
          .columns = {0, tensor.shape.size() == 2 ? tensor.shape[1] : 1}};
}

}  // namespace

StatusOr<std::unique_ptr<Checkpoint>> MakeDummyCheckpoint(const ModelConfig& config,
                                                          uint64_t seed) {
  const std::vector<ExpectedTensor> tensors = ExpectedTensors(config);
  std::map<PoolKey, Pool> pools;
  for (const ExpectedTensor& tensor : tensors) {
    Pool& pool = pools[{FillOf(tensor), tensor.dtypes.front()}];
    const int64_t variety = FillOf(tensor) == Fill::kNormal ? kVariety : kAlign;
    pool.bytes = std::max(pool.bytes, (Bytes(tensor) + variety) / kAlign * kAlign);
  }
  int64_t total = 0;
  for (auto& [key, pool] : pools) {
    pool.begin = total;
    total += pool.bytes;
  }
  HADAL_ASSIGN_OR_RETURN(auto file, SafetensorsFile::InMemory("random weights", total));
  for (const auto& [key, pool] : pools) {
    FillPool(key, file->memory() + pool.begin, pool.bytes, seed);
  }
  std::map<std::string, Checkpoint::Entry> entries;
  uint64_t place = seed;
  for (const ExpectedTensor& tensor : tensors) {
    const Pool& pool = pools[{FillOf(tensor), tensor.dtypes.front()}];
    place = place * 6364136223846793005u + 1442695040888963407u;
    const int64_t slack = (pool.bytes - Bytes(tensor)) / kAlign + 1;
    const int64_t at = static_cast<int64_t>((place >> 20) % static_cast<uint64_t>(slack)) * kAlign;
    Checkpoint::Entry& entry = entries[tensor.name];
    entry = EntryAt(tensor, pool.begin + at, file.get());
    if (FillOf(tensor) == Fill::kNormal) {
      entry.random = RandomElements{.seed = seed, .first = at / DTypeSize(*entry.info.dtype)};
    }
  }
  auto checkpoint = std::make_unique<Checkpoint>();
  checkpoint->AddMemory(std::move(file));
  checkpoint->SetEntries(std::move(entries));
  return checkpoint;
}

}  // namespace hadal
