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
  // Ids 0 to 69 in some order, a third of them by way of the slots' last tokens.
  std::vector<int32_t> wanted, last_tokens, ids;
  for (int32_t i = 0; i < 70; ++i) {
    wanted.push_back((i * 29) % 70);
    ids.push_back(i % 3 == 0 ? -1 - static_cast<int32_t>(last_tokens.size()) : wanted.back());
    if (i % 3 == 0) last_tokens.push_back(wanted.back());
  }
  for (const DType dtype : {DType::kBF16, DType::kF32}) {
    std::vector<float> out(ids.size() * static_cast<size_t>(dim), -1);
    const void* table = dtype == DType::kBF16 ? static_cast<const void*>(bf16.data()) : f32.data();
    Embed({.ids = ids.data(), .last_tokens = last_tokens.data(), .tokens = static_cast<int>(ids.size()), .table = table,
           .table_dtype = dtype, .vocab_begin = begin, .vocab_end = end, .dim = dim,
           .out = out.data()}, context);
    for (size_t t = 0; t < ids.size(); ++t) {
      for (int64_t i = 0; i < dim; ++i) {
        const bool inside = wanted[t] >= begin && wanted[t] < end;
        const float expected = inside ? f32[static_cast<size_t>((wanted[t] - begin) * dim + i)] : 0;
        CHECK(out[t * static_cast<size_t>(dim) + static_cast<size_t>(i)] == expected);
      }
    }
  }
}

}  // namespace
}  // namespace hadal
