#include "kernels/cuda/device/copy_queue.h"

#include <algorithm>
#include <random>

#include "kernels/cuda/device/device_memory.h"
#include "tests/kernels/cuda/device_fixture.h"
#include "tests/support/catch.h"
#include "tests/support/random_seed.h"

namespace hadal {
namespace {

using testing::DeviceFixture;
using testing::GuardedBuffer;

std::vector<uint8_t> RandomBytes(size_t n, std::mt19937_64& rng) {
  std::vector<uint8_t> bytes(n);
  for (uint8_t& b : bytes) b = static_cast<uint8_t>(rng());
  return bytes;
}

TEST_CASE("copies to the device: the host's memory may be reused at once, whatever the sizes") {
  if (!testing::HaveCudaDevice()) return;
  std::mt19937_64 rng(testing::RandomSeed());
  DeviceFixture device(DType::kF32, 1 << 20);
  CopyQueue copies(device.context.stream);
  const int64_t bytes = 70'000'001;
  GuardedBuffer to(bytes);
  const std::vector<uint8_t> expected = RandomBytes(static_cast<size_t>(bytes), rng);
  std::vector<uint8_t> reused(static_cast<size_t>(bytes));
  for (int64_t at = 0; at < bytes;) {
    const int64_t sizes[] = {0,        1, 3, 4096, 1 << 16, (2 << 20) - 1, 2 << 20, (2 << 20) + 5,
                             9'000'000};
    const int64_t size = std::min(sizes[rng() % 9], bytes - at);
    std::copy_n(expected.begin() + at, size, reused.begin());
    copies.ToDevice(static_cast<char*>(to.data()) + at, reused.data(), size);
    std::fill_n(reused.begin(), size, uint8_t{0xee});
    at += size;
  }
  std::vector<uint8_t> back(static_cast<size_t>(bytes));
  copies.ToHost(back.data(), to.data(), bytes);
  CHECK(back == expected);
  CHECK(to.GuardIntact());
}

TEST_CASE("tickets of copies to the host, more of them than there are events") {
  if (!testing::HaveCudaDevice()) return;
  std::mt19937_64 rng(testing::RandomSeed());
  DeviceFixture device(DType::kF32, 1 << 20);
  CopyQueue copies(device.context.stream);
  const int count = 500, size = 1000;
  const auto host = AllocatePinned(count * size);
  GuardedBuffer at_device(size);
  std::vector<std::vector<uint8_t>> expected;
  std::vector<uint64_t> tickets;
  for (int i = 0; i < count; ++i) {
    expected.push_back(RandomBytes(size, rng));
    copies.ToDevice(at_device.data(), expected.back().data(), size);
    tickets.push_back(copies.StartToHost(host->as<uint8_t>() + i * size, at_device.data(), size));
    const size_t asked = rng() % tickets.size();
    if (rng() % 2 == 0) copies.Await(tickets[asked]);
    if (!copies.Done(tickets[asked])) continue;
    const uint8_t* copy = host->as<uint8_t>() + static_cast<int64_t>(asked) * size;
    REQUIRE(std::equal(copy, copy + size, expected[asked].begin()));
  }
  copies.Await(tickets.back());
  for (const uint64_t ticket : tickets) CHECK(copies.Done(ticket));
  for (size_t i = 0; i < expected.size(); ++i) {
    const uint8_t* copy = host->as<uint8_t>() + static_cast<int64_t>(i) * size;
    CHECK(std::equal(copy, copy + size, expected[i].begin()));
  }
}

TEST_CASE("what does not fit on the device is refused and leaves nothing behind") {
  if (!testing::HaveCudaDevice()) return;
  const int64_t free = FreeDeviceBytes();
  CHECK(free > 0);
  CHECK_THROWS_AS(AllocateDevice(free * 4), std::bad_alloc);
  // Large, since the driver keeps some of what earlier tests have freed and hands that out first.
  const int64_t large = int64_t{2} << 30, kept = int64_t{256} << 20;
  const auto buffer = AllocateDevice(large);
  CHECK(buffer->bytes == large);
  CHECK(FreeDeviceBytes() <= free - large + kept);
  CHECK(AllocateDevice(0)->bytes == 0);
  CHECK(cudaGetLastError() == cudaSuccess);
}

}  // namespace
}  // namespace hadal
