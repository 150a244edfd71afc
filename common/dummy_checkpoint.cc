#include "common/dummy_checkpoint.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <functional>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "common/philox.h"
#include "common/tensor_inventory.h"

namespace hadal {
namespace {

constexpr float kDeviation = 0.02f;
constexpr float kF8Scale = kDeviation / 16;   // codes then have a deviation of 16
constexpr int64_t kVariety = int64_t{32} << 20;  // bytes of a pool beyond its largest tensor
constexpr int64_t kAlign = 64;

enum class Fill { kNormal, kOnes, kZeros, kF8Scale };

Fill FillOf(const ExpectedTensor& tensor) {
  const auto ends = [&](std::string_view suffix) {
    return std::string_view(tensor.name).ends_with(suffix);
  };
  if (ends("norm.weight")) return Fill::kOnes;
  if (ends("weight_scale_inv")) return Fill::kF8Scale;
  return ends("e_score_correction_bias") ? Fill::kZeros : Fill::kNormal;
}

// Two numbers of about normal distribution with deviation 1: sums of four 16-bit numbers, less their
// mean. Exact, so that every machine gets the same bits.
std::array<float, 2> Normals(uint64_t seed, uint64_t index) {
  const auto bits = Philox4x32({static_cast<uint32_t>(index), static_cast<uint32_t>(index >> 32), 0, 0},
                               {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)});
  const auto sum = [](uint32_t a, uint32_t b) {
    return static_cast<int32_t>((a & 0xffff) + (a >> 16) + (b & 0xffff) + (b >> 16)) - 131070;
  };
  constexpr float kUnit = 1.0f / 37837.0f;  // 65536 / sqrt(3)
  return {static_cast<float>(sum(bits[0], bits[1])) * kUnit,
          static_cast<float>(sum(bits[2], bits[3])) * kUnit};
}

void StoreNormal(float value, DType dtype, std::byte* to) {
  if (dtype == DType::kF32) {
    const float scaled = value * kDeviation;
    std::memcpy(to, &scaled, 4);
  } else if (dtype == DType::kBF16) {
    const bf16_t scaled = FloatToBf16(value * kDeviation);
    std::memcpy(to, &scaled, 2);
  } else {
    *to = static_cast<std::byte>(FloatToF8E4M3(value * 16));
  }
}

void FillNormals(std::byte* data, int64_t count, DType dtype, uint64_t seed) {
  const int threads = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  const int64_t size = DTypeSize(dtype);
  std::vector<std::thread> workers;
  for (int t = 0; t < threads; ++t) {
    workers.emplace_back([=] {
      const Range own = SplitRange(count / 2, threads, t);
      for (int64_t i = own.begin; i < own.end; ++i) {
        const std::array<float, 2> pair = Normals(seed, static_cast<uint64_t>(i));
        StoreNormal(pair[0], dtype, data + 2 * i * size);
        StoreNormal(pair[1], dtype, data + (2 * i + 1) * size);
      }
    });
  }
  for (std::thread& worker : workers) worker.join();
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
    case Fill::kF8Scale: return FillConstant(data, count, key.second, kF8Scale);
  }
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
    const DType dtype = tensor.dtypes.front();
    const Pool& pool = pools[{FillOf(tensor), dtype}];
    place = place * 6364136223846793005u + 1442695040888963407u;
    const int64_t slack = (pool.bytes - Bytes(tensor)) / kAlign + 1;
    const auto begin = static_cast<uint64_t>(
        pool.begin + static_cast<int64_t>((place >> 20) % static_cast<uint64_t>(slack)) * kAlign);
    const TensorInfo info{.name = tensor.name, .dtype_name = std::string(DTypeName(dtype)),
                          .dtype = dtype, .shape = tensor.shape, .begin = begin,
                          .end = begin + static_cast<uint64_t>(Bytes(tensor))};
    entries[tensor.name] = {.info = info, .file = file.get(), .rows = {0, tensor.shape[0]},
                            .columns = {0, tensor.shape.size() == 2 ? tensor.shape[1] : 1}};
  }
  auto checkpoint = std::make_unique<Checkpoint>();
  checkpoint->AddMemory(std::move(file));
  checkpoint->SetEntries(std::move(entries));
  return checkpoint;
}

}  // namespace hadal
