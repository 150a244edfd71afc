#include <random>

#include "kernels/cuda/cuda_backend.h"
#include "tests/support/catch.h"
#include "tests/support/random_seed.h"

namespace hadal {
namespace {

TEST_CASE("a device that does not exist, or a type that none has, is refused with the reason") {
  const auto wrong_type = MakeCudaBackend({.activation = DType::kF8E4M3});
  CHECK(wrong_type.status().message() == "activations on a CUDA device are BF16 or F32, not F8_E4M3");
  const auto missing = MakeCudaBackend({.device = CudaDeviceCount() + 3});
  CHECK(missing.status().code() == StatusCode::kFailedPrecondition);
  std::printf("%s\n", missing.status().message().c_str());
}

TEST_CASE("ops through the backend: a step of embedding, norm, greedy draw, its token in a slot") {
  if (CudaDeviceCount() == 0) {
    std::printf("skipped: no CUDA device\n");
    return;
  }
  std::mt19937_64 rng(testing::RandomSeed());
  auto made = MakeCudaBackend({.activation = DType::kF32});
  REQUIRE(made.ok());
  Backend& backend = **made;
  std::printf("%s, %lld bytes free\n", backend.name().c_str(),
              static_cast<long long>(backend.AvailableBytes(1)));
  const int64_t vocab = 300;
  const OpLimits limits{.tokens = 8, .logit_rows = 8, .dim = vocab, .vocab = vocab};
  CHECK(backend.ScratchBytes(limits) > 0);
  backend.Reserve(limits);

  // Row i of the table has its largest element at next[i].
  std::vector<int32_t> next(vocab);
  std::vector<float> table(vocab * vocab);
  std::normal_distribution<float> normal;
  for (float& v : table) v = normal(rng);
  for (size_t i = 0; i < next.size(); ++i) {
    next[i] = static_cast<int32_t>(rng() % vocab);
    table[i * vocab + static_cast<size_t>(next[i])] = 50;
  }
  const auto upload = [&](const void* data, size_t bytes) {
    auto buffer = backend.Allocate(static_cast<int64_t>(bytes));
    backend.CopyToDevice(buffer->data, data, buffer->bytes);
    return buffer;
  };
  const std::vector<float> ones(vocab, 1.0f);
  const std::vector<int32_t> ids{-1, -2}, slots{0, 1}, positions{1, 1}, first{17, 230};
  const std::vector<SamplingParams> greedy(2);
  const auto d_table = upload(table.data(), table.size() * 4), d_ones = upload(ones.data(), vocab * 4);
  const auto d_ids = upload(ids.data(), 8), d_slots = upload(slots.data(), 8);
  const auto d_positions = upload(positions.data(), 8), d_last = upload(first.data(), 8);
  const auto d_sampling = upload(greedy.data(), 2 * sizeof(SamplingParams));
  const auto x = backend.Allocate(2 * vocab * 4), out = backend.Allocate(2 * sizeof(SampledToken));
  const auto host = backend.AllocateHost(2 * sizeof(SampledToken));
  std::vector<int32_t> expected = first;
  for (int step = 0; step < 40; ++step) {
    backend.Replay(step % 4 == 0 ? 0 : 5, [&] {
      backend.Embed({.ids = d_ids->as<int32_t>(), .last_tokens = d_last->as<int32_t>(), .tokens = 2,
                     .table = d_table->data, .table_dtype = DType::kF32,
                     .vocab_end = static_cast<int32_t>(vocab), .dim = vocab, .out = x->data});
      backend.RmsNorm({.residual = x->data, .weight = d_ones->as<float>(), .out = x->data,
                       .tokens = 2, .dim = vocab, .x_stride = vocab, .out_stride = vocab});
      backend.Sample({.logits = x->as<float>(), .rows = 2, .vocab = vocab, .vocab_limit = vocab,
                      .sampling = d_sampling->as<SamplingParams>(),
                      .positions = d_positions->as<int32_t>(), .out = out->as<SampledToken>(),
                      .all_greedy = true});
      backend.StoreTokens({.tokens = out->as<SampledToken>(), .slots = d_slots->as<int32_t>(),
                           .last_tokens = d_last->as<int32_t>(), .rows = 2});
    });
    const uint64_t ticket = backend.StartCopyToHost(host->data, out->data, host->bytes);
    backend.Await(ticket);
    for (size_t i = 0; i < 2; ++i) {
      expected[i] = next[static_cast<size_t>(expected[i])];
      REQUIRE(host->as<SampledToken>()[i].token == expected[i]);
    }
  }
}

}  // namespace
}  // namespace hadal
