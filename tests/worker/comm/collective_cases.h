#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "worker/comm/communicator.h"

namespace hadal::testing {

// Runs every collective of `comm` on random sizes drawn from `seed` (the same on all ranks) and
// returns what went wrong, empty if nothing did. Every rank can compute every other rank's input, and
// float inputs are small integers, so results are exact.
inline float InputValue(uint64_t seed, int rank, int64_t i) {
  uint64_t x = (seed * 1000003 + rank * 7919 + static_cast<uint64_t>(i)) * 0x9e3779b97f4a7c15u;
  x ^= x >> 29;
  return static_cast<float>(static_cast<int64_t>(x % 2001) - 1000);
}

inline std::string CheckAllReduce(HostCommunicator& comm, uint64_t seed, int64_t count) {
  std::vector<float> data(count);
  for (int64_t i = 0; i < count; ++i) data[i] = InputValue(seed, comm.rank(), i);
  comm.AllReduceSum(data.data(), count, DType::kF32);
  for (int64_t i = 0; i < count; ++i) {
    float expected = 0;
    for (int r = 0; r < comm.size(); ++r) expected += InputValue(seed, r, i);
    if (data[i] != expected) return "AllReduceSum of " + std::to_string(count) + " floats";
  }
  return "";
}

inline std::string CheckReduceScatter(HostCommunicator& comm, uint64_t seed, int64_t count) {
  const int64_t all = count * comm.size();
  std::vector<float> send(all), recv(count);
  for (int64_t i = 0; i < all; ++i) send[i] = InputValue(seed, comm.rank(), i);
  comm.ReduceScatterSum(send.data(), recv.data(), count, DType::kF32);
  for (int64_t i = 0; i < count; ++i) {
    float expected = 0;
    for (int r = 0; r < comm.size(); ++r) expected += InputValue(seed, r, comm.rank() * count + i);
    if (recv[i] != expected) return "ReduceScatterSum of " + std::to_string(count) + " floats";
  }
  return "";
}

inline uint8_t InputByte(uint64_t seed, int from, int to, int64_t i) {
  return static_cast<uint8_t>((seed * 31 + from * 17 + to * 5 + i * 7) & 0xff);
}

inline std::string CheckAllToAllV(HostCommunicator& comm, uint64_t seed, int64_t max_bytes) {
  auto bytes = [&](int from, int to) {
    std::mt19937_64 rng(seed + from * 101 + to);
    return rng() % 4 == 0 ? int64_t{0} : static_cast<int64_t>(rng() % (max_bytes + 1));
  };
  std::vector<int64_t> send_bytes, recv_bytes;
  std::vector<uint8_t> send;
  for (int r = 0; r < comm.size(); ++r) {
    send_bytes.push_back(bytes(comm.rank(), r));
    recv_bytes.push_back(bytes(r, comm.rank()));
    for (int64_t i = 0; i < send_bytes.back(); ++i) {
      send.push_back(InputByte(seed, comm.rank(), r, i));
    }
  }
  std::vector<uint8_t> recv(std::accumulate(recv_bytes.begin(), recv_bytes.end(), int64_t{0}));
  comm.AllToAllV(send.data(), send_bytes, recv.data(), recv_bytes);
  int64_t at = 0;
  for (int r = 0; r < comm.size(); ++r) {
    for (int64_t i = 0; i < recv_bytes[r]; ++i, ++at) {
      if (recv[at] != InputByte(seed, r, comm.rank(), i)) return "AllToAllV";
    }
  }
  return "";
}

// Arrays of several sizes, none among them, in one call.
inline std::string CheckGatherEach(HostCommunicator& comm, uint64_t seed, int64_t max_bytes) {
  const int64_t sizes[] = {max_bytes, 0, static_cast<int64_t>(seed % (max_bytes + 1)), 1};
  std::vector<std::vector<uint8_t>> sent, received;
  std::vector<Communicator::Gather> arrays;
  for (const int64_t bytes : sizes) {
    const auto a = static_cast<int>(sent.size());
    auto& send = sent.emplace_back(bytes);
    auto& recv = received.emplace_back(bytes * comm.size());
    for (int64_t i = 0; i < bytes; ++i) send[i] = InputByte(seed, comm.rank(), a, i);
    arrays.push_back({send.data(), recv.data(), bytes});
  }
  comm.AllGatherEach(arrays);
  for (int a = 0; a < 4; ++a) {
    for (int64_t i = 0; i < sizes[a] * comm.size(); ++i) {
      const auto from = static_cast<int>(i / sizes[a]);
      if (received[a][i] != InputByte(seed, from, a, i % sizes[a])) return "AllGatherEach";
    }
  }
  return "";
}

inline std::string CheckGathers(HostCommunicator& comm, uint64_t seed, int64_t max_bytes) {
  std::vector<int64_t> sizes;
  for (int r = 0; r < comm.size(); ++r) {
    sizes.push_back(static_cast<int64_t>((seed * 7 + r * 131) % (max_bytes + 1)));
  }
  std::vector<uint8_t> send;
  for (int64_t i = 0; i < sizes[comm.rank()]; ++i) send.push_back(InputByte(seed, comm.rank(), 0, i));
  std::vector<uint8_t> recv(std::accumulate(sizes.begin(), sizes.end(), int64_t{0}));
  comm.AllGatherV(send.data(), recv.data(), sizes);
  int64_t at = 0;
  for (int r = 0; r < comm.size(); ++r) {
    for (int64_t i = 0; i < sizes[r]; ++i, ++at) {
      if (recv[at] != InputByte(seed, r, 0, i)) return "AllGatherV";
    }
  }
  return "";
}

inline std::string CheckBroadcasts(HostCommunicator& comm, uint64_t seed, int64_t max_bytes) {
  const int root = static_cast<int>(seed % comm.size());
  std::vector<uint8_t> expected;
  for (int64_t i = 0; i < static_cast<int64_t>(seed % max_bytes); ++i) {
    expected.push_back(InputByte(seed, root, 0, i));
  }
  std::vector<uint8_t> data(expected.size());
  if (comm.rank() == root) data = expected;
  comm.Broadcast(data.data(), static_cast<int64_t>(data.size()), root);
  if (data != expected) return "Broadcast";
  std::vector<uint8_t> message;
  if (comm.rank() == root) message = expected;
  comm.BroadcastMessage(&message, root);
  return message == expected ? "" : "BroadcastMessage";
}

// Every collective on one communicator, many sizes.
inline std::string CheckAllCollectives(HostCommunicator& comm, uint64_t seed) {
  std::mt19937_64 rng(seed);
  for (int round = 0; round < 20; ++round) {
    const uint64_t s = rng() >> 8;
    for (int64_t count : {int64_t{1}, static_cast<int64_t>(s % 300), int64_t{8192}, int64_t{20011}}) {
      if (auto e = CheckAllReduce(comm, s, count); !e.empty()) return e;
      if (auto e = CheckReduceScatter(comm, s, count); !e.empty()) return e;
    }
    for (int64_t max_bytes : {int64_t{3}, int64_t{5000}, int64_t{100000}}) {
      if (auto e = CheckAllToAllV(comm, s, max_bytes); !e.empty()) return e;
      if (auto e = CheckGathers(comm, s, max_bytes); !e.empty()) return e;
      if (auto e = CheckGatherEach(comm, s, max_bytes); !e.empty()) return e;
      if (auto e = CheckBroadcasts(comm, s, max_bytes); !e.empty()) return e;
    }
    comm.Barrier();
  }
  return "";
}

// Random floats: all ranks must hold the same bits, those of a sum in ascending rank order, for a
// buffer sent whole and for the same elements sent in pieces.
inline std::string CheckReductionOrder(HostCommunicator& comm, uint64_t seed) {
  const int64_t count = 30001;
  auto value = [&](int rank, int64_t i) {
    return std::sin(static_cast<float>(InputValue(seed, rank, i))) * 1e3f;
  };
  std::vector<float> whole(count), pieces(count);
  for (int64_t i = 0; i < count; ++i) whole[i] = pieces[i] = value(comm.rank(), i);
  comm.AllReduceSum(whole.data(), count, DType::kF32);
  for (int64_t begin = 0; begin < count; begin += 1234) {
    comm.AllReduceSum(pieces.data() + begin, std::min<int64_t>(1234, count - begin), DType::kF32);
  }
  for (int64_t i = 0; i < count; ++i) {
    float expected = value(0, i);
    for (int r = 1; r < comm.size(); ++r) expected += value(r, i);
    if (std::memcmp(&expected, &whole[i], 4) != 0) return "sum order of a large buffer";
    if (std::memcmp(&expected, &pieces[i], 4) != 0) return "sum order of a small buffer";
  }
  return "";
}

}  // namespace hadal::testing
