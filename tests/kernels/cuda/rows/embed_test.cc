#include <random>

#include "kernels/cuda/rows/ops.h"
#include "tests/kernels/cpu/random_weight.h"
#include "tests/kernels/cuda/device_fixture.h"
#include "tests/support/catch.h"
#include "tests/support/random_seed.h"

namespace hadal {
namespace {

using testing::DeviceFixture;
using testing::GuardedBuffer;

void CheckEmbed(DType act, bool float_out, DType table_dtype, int64_t dim, std::mt19937_64& rng) {
  CAPTURE(DTypeName(act), float_out, DTypeName(table_dtype), dim);
  const DType out_dtype = float_out ? DType::kF32 : act;
  DeviceFixture device(act, 1 << 20);
  const int32_t begin = 40, end = 97, slots = 5;
  std::vector<float> table = testing::RandomFloats((end - begin) * dim, rng);
  const GuardedBuffer device_table(testing::ToAct(table, table_dtype));

  std::vector<int32_t> last_tokens;
  for (int i = 0; i < slots; ++i) last_tokens.push_back(static_cast<int32_t>(rng() % 120));
  std::vector<int32_t> ids{begin, begin - 1, end - 1, end, 0, -1, -slots};
  while (ids.size() < 30) ids.push_back(static_cast<int32_t>(rng() % 120) - (rng() % 3 ? 0 : 120));
  for (int32_t& id : ids) id = std::max(id, -slots);
  const GuardedBuffer device_ids(ids), device_last(last_tokens);

  GuardedBuffer out(static_cast<int64_t>(ids.size()) * dim * DTypeSize(out_dtype));
  cuda::Embed({.ids = device_ids.as<int32_t>(),
               .last_tokens = device_last.as<int32_t>(),
               .tokens = static_cast<int>(ids.size()), .table = device_table.data(),
               .table_dtype = table_dtype, .vocab_begin = begin, .vocab_end = end, .dim = dim,
               .float_out = float_out, .out = out.data()}, device.context);
  const std::vector<float> rows = DownloadFloats(out, out_dtype);
  CHECK(out.GuardIntact());
  int wrong = 0;
  for (size_t t = 0; t < ids.size(); ++t) {
    const int32_t id = ids[t] >= 0 ? ids[t] : last_tokens[static_cast<size_t>(-1 - ids[t])];
    for (int64_t i = 0; i < dim; ++i) {
      const bool mine = id >= begin && id < end;
      float expected = mine ? table[static_cast<size_t>((id - begin) * dim + i)] : 0.0f;
      if (out_dtype == DType::kBF16) expected = Bf16ToFloat(FloatToBf16(expected));
      const float got = rows[t * static_cast<size_t>(dim) + static_cast<size_t>(i)];
      if (got == expected || ++wrong > 5) continue;
      std::printf("token %zu (id %d) element %lld: %g, not %g\n", t, id, static_cast<long long>(i),
                  got, expected);
    }
  }
  CHECK(wrong == 0);
}

TEST_CASE("embedding rows: ids of other ranks give zeros, negative ids stand for slots") {
  if (!testing::HaveCudaDevice()) return;
  std::mt19937_64 rng(testing::RandomSeed());
  for (const int64_t dim : {1, 7, 64, 130, 2048, 7168}) {
    for (const DType table : {DType::kBF16, DType::kF32}) {
      CheckEmbed(DType::kBF16, false, table, dim, rng);
      CheckEmbed(DType::kBF16, true, table, dim, rng);
      CheckEmbed(DType::kF32, false, table, dim, rng);
    }
  }
}

TEST_CASE("drawn tokens go to their slots") {
  if (!testing::HaveCudaDevice()) return;
  std::mt19937_64 rng(testing::RandomSeed());
  DeviceFixture device(DType::kF32, 1 << 20);
  const int rows = 301, slots = 400;
  std::vector<SampledToken> tokens(rows);
  std::vector<int32_t> order(slots), expected(slots, -1);
  for (int i = 0; i < slots; ++i) order[static_cast<size_t>(i)] = i;
  std::shuffle(order.begin(), order.end(), rng);
  order.resize(rows);
  for (size_t i = 0; i < rows; ++i) {
    tokens[i].token = static_cast<int32_t>(rng() % 100000);
    if (rng() % 4 == 0) order[i] = -1;
    if (order[i] >= 0) expected[static_cast<size_t>(order[i])] = tokens[i].token;
  }
  const GuardedBuffer device_tokens(tokens), device_slots(order), last(slots * 4);
  cuda::StoreTokens({.tokens = device_tokens.as<SampledToken>(),
                     .slots = device_slots.as<int32_t>(),
                     .last_tokens = last.as<int32_t>(), .rows = rows},
                    device.context);
  CHECK(last.Download<int32_t>() == expected);  // poison reads as -1
  CHECK(last.GuardIntact());
}

TEST_CASE("rows are copied, whatever their alignment, and nothing between them") {
  if (!testing::HaveCudaDevice()) return;
  std::mt19937_64 rng(testing::RandomSeed());
  DeviceFixture device(DType::kF32, 1 << 20);
  for (const int64_t unit : {1, 2, 4, 16}) {
    for (const int64_t width : {1, 37, 6400, 40000}) {
      for (const int rows : {1, 7, 300}) {
        CAPTURE(unit, width, rows);
        const int64_t bytes = unit * width;
        const int64_t from_stride = bytes + unit * 3, to_stride = bytes + unit * 5;
        std::vector<uint8_t> source(static_cast<size_t>(rows * from_stride));
        for (uint8_t& b : source) b = static_cast<uint8_t>(rng());
        const GuardedBuffer from(source), to(rows * to_stride);
        cuda::CopyRows({.from = from.data(), .from_stride = from_stride, .to = to.data(),
                        .to_stride = to_stride, .rows = rows, .bytes = bytes}, device.context);
        std::vector<uint8_t> expected(static_cast<size_t>(rows * to_stride), 0xff);
        for (int64_t r = 0; r < rows; ++r) {
          std::copy_n(source.begin() + r * from_stride, bytes, expected.begin() + r * to_stride);
        }
        CHECK((to.Download<uint8_t>() == expected));
        // Onto themselves; then the first one to all.
        cuda::CopyRows({.from = to.data(), .from_stride = to_stride, .to = to.data(),
                        .to_stride = to_stride, .rows = rows, .bytes = bytes}, device.context);
        CHECK((to.Download<uint8_t>() == expected));
        cuda::CopyRows({.from = from.data(), .from_stride = 0, .to = to.data(), .to_stride = to_stride,
                        .rows = rows, .bytes = bytes}, device.context);
        for (int64_t r = 0; r < rows; ++r) {
          std::copy_n(source.begin(), bytes, expected.begin() + r * to_stride);
        }
        CHECK((to.Download<uint8_t>() == expected));
        CHECK(to.GuardIntact());
      }
    }
  }
}

}  // namespace
}  // namespace hadal
