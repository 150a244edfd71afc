#include <random>
#include <vector>

#include "kernels/cpu/ops.h"
#include "tests/support/catch.h"
#include "tests/support/random_seed.h"

namespace hadal {
namespace {

TEST_CASE("embedding copies the rows of its vocabulary slice and zeroes the others") {
  std::mt19937_64 rng(testing::RandomSeed());
  ThreadPool pool(2);
  CpuContext context(&pool, CpuIsa::kPortable);
  const int64_t dim = 37;
  const int32_t begin = 10, end = 50;
  std::vector<bf16_t> bf16(static_cast<size_t>((end - begin) * dim));
  std::vector<float> f32(bf16.size());
  for (size_t i = 0; i < bf16.size(); ++i) {
    bf16[i] = static_cast<bf16_t>(rng() & 0x3fff);
    f32[i] = Bf16ToFloat(bf16[i]);
  }
  std::vector<int32_t> ids;
  for (int32_t id = 0; id < 70; ++id) ids.push_back((id * 29) % 70);
  for (const DType dtype : {DType::kBF16, DType::kF32}) {
    std::vector<float> out(ids.size() * static_cast<size_t>(dim), -1);
    const void* table = dtype == DType::kBF16 ? static_cast<const void*>(bf16.data()) : f32.data();
    Embed({.ids = ids.data(), .tokens = static_cast<int>(ids.size()), .table = table,
           .table_dtype = dtype, .vocab_begin = begin, .vocab_end = end, .dim = dim,
           .out = out.data()}, context);
    for (size_t t = 0; t < ids.size(); ++t) {
      for (int64_t i = 0; i < dim; ++i) {
        const bool inside = ids[t] >= begin && ids[t] < end;
        const float expected = inside ? f32[static_cast<size_t>((ids[t] - begin) * dim + i)] : 0;
        CHECK(out[t * static_cast<size_t>(dim) + static_cast<size_t>(i)] == expected);
      }
    }
  }
}

}  // namespace
}  // namespace hadal
