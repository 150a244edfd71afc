#include <random>

#include "kernels/cuda/cuda_backend.h"
#include "tests/support/catch.h"
#include "tests/support/random_seed.h"

namespace hadal {
namespace {

TEST_CASE("a device that does not exist, or a type that none has, is refused with the reason") {
  const auto wrong_type = MakeCudaBackend({.activation = DType::kF8E4M3});
  CHECK(wrong_type.status().message() ==
        "activations on a CUDA device are BF16 or F32, not F8_E4M3");
  const auto missing = MakeCudaBackend({.device = CudaDeviceCount() + 3});
  CHECK(missing.status().code() == StatusCode::kFailedPrecondition);
  std::printf("%s\n", missing.status().message().c_str());
}

// Two sequences that walk through a random table of successors: row i of the embedding has its
// largest element at next[i], so that a greedy draw of the normed row is next[i].
class Walk {
 public:
  static constexpr int64_t kVocab = 300;

  Walk(Backend& backend, std::mt19937_64& rng)
      : backend_(backend), next_(kVocab), current_{17, 230}, x_(backend.Allocate(2 * kVocab * 4)),
        out_(backend.Allocate(2 * sizeof(SampledToken))),
        host_(backend.AllocateHost(2 * sizeof(SampledToken))) {
    std::normal_distribution<float> normal;
    std::vector<float> table(kVocab * kVocab);
    for (float& v : table) v = normal(rng);
    for (size_t i = 0; i < next_.size(); ++i) {
      next_[i] = static_cast<int32_t>(rng() % kVocab);
      table[i * kVocab + static_cast<size_t>(next_[i])] = 50;
    }
    table_ = Upload(table);
    ones_ = Upload(std::vector<float>(kVocab, 1.0f));
    ids_ = Upload(std::vector<int32_t>{-1, -2});
    slots_ = Upload(std::vector<int32_t>{0, 1});
    positions_ = Upload(std::vector<int32_t>{1, 1});
    last_ = Upload(current_);
    sampling_ = Upload(std::vector<SamplingParams>(2));
  }

  // Whether both sequences went where they had to.
  bool Step(uint64_t key) {
    backend_.Replay(key, [this] { RunOps(); });
    const uint64_t ticket = backend_.StartCopyToHost(host_->data, out_->data, host_->bytes);
    backend_.Await(ticket);
    for (size_t i = 0; i < 2; ++i) {
      current_[i] = next_[static_cast<size_t>(current_[i])];
      if (host_->as<SampledToken>()[i].token != current_[i]) return false;
    }
    return true;
  }

 private:
  template <typename T>
  std::unique_ptr<DeviceBuffer> Upload(const std::vector<T>& host) {
    auto buffer = backend_.Allocate(static_cast<int64_t>(host.size() * sizeof(T)));
    backend_.CopyToDevice(buffer->data, host.data(), buffer->bytes);
    return buffer;
  }

  void RunOps() {
    backend_.Embed({.ids = ids_->as<int32_t>(), .last_tokens = last_->as<int32_t>(), .tokens = 2,
                    .table = table_->data, .table_dtype = DType::kF32,
                    .vocab_end = static_cast<int32_t>(kVocab), .dim = kVocab, .out = x_->data});
    backend_.RmsNorm({.residual = x_->data, .weight = ones_->as<float>(), .out = x_->data,
                      .tokens = 2, .dim = kVocab, .x_stride = kVocab, .out_stride = kVocab});
    backend_.Sample({.logits = x_->as<float>(), .rows = 2, .vocab = kVocab, .vocab_limit = kVocab,
                     .sampling = sampling_->as<SamplingParams>(),
                     .positions = positions_->as<int32_t>(), .out = out_->as<SampledToken>(),
                     .all_greedy = true});
    backend_.StoreTokens({.tokens = out_->as<SampledToken>(), .slots = slots_->as<int32_t>(),
                          .last_tokens = last_->as<int32_t>(), .rows = 2});
  }

  Backend& backend_;
  std::vector<int32_t> next_;
  std::vector<int32_t> current_;
  std::unique_ptr<DeviceBuffer> x_, out_;
  std::unique_ptr<HostBuffer> host_;
  std::unique_ptr<DeviceBuffer> table_, ones_, ids_, slots_, positions_, last_, sampling_;
};

TEST_CASE(
    "steps through the backend, replayed and not: embedding, norm, draw, its token in a slot") {
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
  const OpLimits limits{.tokens = 8, .logit_rows = 8, .dim = Walk::kVocab, .vocab = Walk::kVocab};
  CHECK(backend.ScratchBytes(limits) > 0);
  backend.Reserve(limits);
  Walk walk(backend, rng);
  for (int step = 0; step < 40; ++step) {
    CAPTURE(step);
    REQUIRE(walk.Step(step % 4 == 0 ? 0 : 5));
  }
  backend.Synchronize();
}

}  // namespace
}  // namespace hadal
