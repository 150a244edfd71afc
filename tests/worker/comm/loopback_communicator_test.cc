#include "worker/comm/loopback_communicator.h"

#include <algorithm>
#include <cstring>
#include <random>

#include "tests/support/catch.h"
#include "tests/support/random_seed.h"

namespace hadal {
namespace {

// Copies on the host, and counts.
struct Meter {
  int64_t bytes = 0;
  int calls = 0;
  LoopbackCommunicator::Copy copy() {
    return [this](const void* from, int64_t from_stride, void* to, int64_t to_stride, int rows,
                  int64_t row_bytes) {
      ++calls;
      bytes += rows * row_bytes;
      for (int64_t i = 0; i < rows; ++i) {
        std::memmove(static_cast<char*>(to) + i * to_stride,
                     static_cast<const char*>(from) + i * from_stride, row_bytes);
      }
    };
  }
};

std::vector<uint8_t> RandomBytes(int64_t count, std::mt19937_64* random) {
  std::vector<uint8_t> bytes(count);
  for (int64_t i = 0; i < count; i += 8) {
    const uint64_t drawn = (*random)();
    std::memcpy(bytes.data() + i, &drawn, static_cast<size_t>(std::min<int64_t>(8, count - i)));
  }
  return bytes;
}

TEST_CASE("a loopback moves what its rank would, and fills all that is received") {
  std::mt19937_64 random(testing::RandomSeed());
  for (int round = 0; round < 200; ++round) {
    const int size = 2 + static_cast<int>(random() % 15), rank = static_cast<int>(random() % size);
    const int64_t count = 1 + static_cast<int64_t>(random() % (round % 20 == 0 ? 300000 : 500));
    CAPTURE(size, rank, count);
    Meter meter;
    LoopbackCommunicator comm(rank, size, meter.copy());
    const auto moved = [&] { return std::exchange(meter.bytes, 0); };
    const std::vector<uint8_t> send = RandomBytes(size * count * 4 + 16, &random);

    std::vector<uint8_t> data = send;
    comm.AllReduceSum(data.data(), count, DType::kF32);
    CHECK(moved() == count * 4);
    comm.AllReduceSum(data.data(), count, DType::kBF16);
    CHECK(moved() == count * 2);
    comm.Broadcast(data.data(), count, 0);
    CHECK(moved() == count);
    CHECK(data == send);

    std::vector<uint8_t> own(count * 4);
    comm.ReduceScatterSum(send.data(), own.data(), count, DType::kF32);
    CHECK(moved() == (size + 1) * count * 4);
    CHECK(std::equal(own.begin(), own.end(), send.begin() + rank * count * 4));

    // Every part becomes the own one.
    const auto repeats = [&](const std::vector<uint8_t>& recv, int64_t bytes) {
      for (size_t i = 0; i < recv.size(); ++i) {
        if (recv[i] != send[static_cast<int64_t>(i) % bytes]) return false;
      }
      return true;
    };
    std::vector<uint8_t> recv = RandomBytes(size * count, &random);
    comm.AllGather(send.data(), recv.data(), count);
    CHECK(moved() == size * count);
    CHECK(repeats(recv, count));

    std::vector<int64_t> parts(size, count);
    parts[(rank + 1) % size] += 7;  // more than the own part
    recv = RandomBytes(size * count + 7, &random);
    comm.AllGatherV(send.data(), recv.data(), parts);
    CHECK(moved() == size * count + 7);
    CHECK(repeats(std::vector<uint8_t>(recv.begin(), recv.begin() + count), count));
    CHECK(meter.calls < 10 * (size + 5));

    recv = RandomBytes(size * count + 7, &random);
    comm.AllToAllV(send.data(), parts, recv.data(), parts);
    CHECK(moved() == size * count + 7);
    CHECK(std::equal(recv.begin(), recv.end(), send.begin()));
  }
}

TEST_CASE("the array of others brings draws in turn, and the own part") {
  std::mt19937_64 random(testing::RandomSeed());
  Meter meter;
  LoopbackCommunicator comm(/*rank=*/2, /*size=*/4, meter.copy());
  const std::vector<uint8_t> first = RandomBytes(4 * 24, &random), second = RandomBytes(4 * 24, &random);
  comm.SetOthers({.array = 1, .stride = 24, .draws = {first.data(), second.data()}});
  for (int call = 0; call < 5; ++call) {
    const auto& draw = call % 2 == 0 ? first : second;
    const std::vector<uint8_t> x = RandomBytes(10, &random), ids = RandomBytes(20, &random);
    std::vector<uint8_t> all_x(40), all_ids(80);
    const Communicator::Gather arrays[] = {{x.data(), all_x.data(), 10}, {ids.data(), all_ids.data(), 20}};
    comm.AllGatherEach(arrays);
    for (int r = 0; r < 4; ++r) {
      CHECK(std::equal(x.begin(), x.end(), all_x.begin() + r * 10));
      const uint8_t* expected = r == 2 ? ids.data() : draw.data() + r * 24;
      CHECK(std::equal(expected, expected + 20, all_ids.begin() + r * 20));
    }
  }
}

}  // namespace
}  // namespace hadal
