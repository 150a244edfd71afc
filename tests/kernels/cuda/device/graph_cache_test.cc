#include "kernels/cuda/device/graph_cache.h"

#include <random>
#include <stdexcept>

#include "kernels/cuda/rows/ops.h"
#include "tests/kernels/cuda/device_fixture.h"
#include "tests/support/catch.h"
#include "tests/support/random_seed.h"

namespace hadal {
namespace {

using testing::DeviceFixture;
using testing::GuardedBuffer;

// Adds delta to the residual `times`, each in a launch of its own.
void AddRepeatedly(const GuardedBuffer& residual, const GuardedBuffer& delta, int tokens, int times,
                   CudaContext& context) {
  for (int i = 0; i < times; ++i) {
    cuda::RmsNorm({.residual = residual.data(), .delta = delta.data(), .tokens = tokens, .dim = 64,
                   .x_stride = 64, .out_stride = 64}, context);
  }
}

TEST_CASE(
    "a key runs its ops once and is launched as a graph from then on; key 0 always runs them") {
  if (!testing::HaveCudaDevice()) return;
  DeviceFixture device(DType::kF32, 1 << 20);
  GraphCache graphs(device.context.stream);
  const int tokens = 3;
  const GuardedBuffer residual(std::vector<float>(tokens * 64, 0.0f));
  const GuardedBuffer delta(std::vector<float>(tokens * 64, 1.0f));
  int calls = 0;
  const auto replay = [&](uint64_t key, int times) {
    graphs.Replay(key, [&] {
      ++calls;
      AddRepeatedly(residual, delta, tokens, times, device.context);
    });
  };
  for (int i = 0; i < 5; ++i) replay(7, 20);
  CHECK(calls == 1);
  CHECK(residual.Download<float>() == std::vector<float>(tokens * 64, 100.0f));
  for (int i = 0; i < 3; ++i) replay(0, 2);
  CHECK(calls == 4);
  CHECK(residual.Download<float>() == std::vector<float>(tokens * 64, 106.0f));
  replay(8, 1);
  replay(7, 20);
  CHECK(calls == 5);
  CHECK(residual.Download<float>() == std::vector<float>(tokens * 64, 127.0f));
}

TEST_CASE("what ops throw while they are captured passes through; the key can be tried again") {
  if (!testing::HaveCudaDevice()) return;
  DeviceFixture device(DType::kF32, 1 << 20);
  GraphCache graphs(device.context.stream);
  const std::vector<float> ones(64, 1.0f);
  const GuardedBuffer residual(ones), delta(ones);
  CHECK_THROWS_AS(graphs.Replay(3, [&] {
    AddRepeatedly(residual, delta, 1, 2, device.context);
    throw std::runtime_error("no");
  }), std::runtime_error);
  graphs.Replay(3, [&] { AddRepeatedly(residual, delta, 1, 4, device.context); });
  CHECK(residual.Download<float>() == std::vector<float>(64, 5.0f));
}

}  // namespace
}  // namespace hadal
