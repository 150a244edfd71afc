#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "kernels/backend.h"

namespace hadal::testing {

// A backend that says it replays. It runs every step whole, but remembers, of each key, the ops of the
// first run with all their pointers, shapes and bounds: what a recording would repeat. Its memory starts
// as NaNs. `inner` computes on the host.
class TracingBackend final : public Backend {
 public:
  explicit TracingBackend(std::unique_ptr<Backend> inner) : inner_(std::move(inner)) {}

  // From now on ops compute nothing.
  void StopComputing() { computes_ = false; }
  // Keys in the order of their first run.
  const std::vector<uint64_t>& recorded() const { return recorded_; }
  // Runs under a known key that were not the recorded one, op by op.
  int deviations() const { return deviations_; }
  // Runs under key 0.
  int not_replayed() const { return not_replayed_; }
  // Of each key, the ops without their pointers.
  std::map<uint64_t, std::vector<uint64_t>> shapes() const { return shapes_; }
  struct Packed {
    std::vector<StackedSource> matrices;  // the data is the checkpoint's
    WeightUse use;
  };
  // What was asked to be packed, in order.
  const std::vector<Packed>& packed() const { return packed_; }
  struct Planned {
    int64_t n, k;
    DType dtype;
    WeightUse use;
    bool operator==(const Planned&) const = default;
  };
  // Of what the packed size was asked, in order.
  const std::vector<Planned>& planned() const { return planned_; }
  // Bytes of all buffers and packed weights that were ever asked for.
  int64_t allocated() const { return allocated_; }

  void Replay(uint64_t key, const std::function<void()>& ops) override {
    trace_.clear();
    shape_.clear();
    ops();
    if (key == 0) {
      ++not_replayed_;
      return;
    }
    const auto [step, is_new] = steps_.try_emplace(key, trace_);
    if (is_new) recorded_.push_back(key);
    if (is_new) shapes_[key] = shape_;
    if (step->second != trace_) ++deviations_;
  }
  bool replays() const override { return true; }

  std::string name() const override { return "tracing " + inner_->name(); }
  DType activation_dtype() const override { return inner_->activation_dtype(); }
  std::unique_ptr<DeviceBuffer> Allocate(int64_t bytes) override {
    allocated_ += bytes;
    auto buffer = inner_->Allocate(bytes);
    std::memset(buffer->data, 0xff, static_cast<size_t>(bytes));
    return buffer;
  }
  std::unique_ptr<HostBuffer> AllocateHost(int64_t bytes) override {
    return inner_->AllocateHost(bytes);
  }
  int64_t AvailableBytes(int ranks) const override { return inner_->AvailableBytes(ranks); }
  void CopyToDevice(void* device, const void* host, int64_t bytes) override {
    inner_->CopyToDevice(device, host, bytes);
  }
  void CopyToHost(void* host, const void* device, int64_t bytes) override {
    inner_->CopyToHost(host, device, bytes);
  }
  uint64_t StartCopyToHost(void* host, const void* device, int64_t bytes) override {
    return inner_->StartCopyToHost(host, device, bytes);
  }
  bool Done(uint64_t ticket) override { return inner_->Done(ticket); }
  void Await(uint64_t ticket) override { inner_->Await(ticket); }
  std::unique_ptr<PackedWeight> Pack(const std::vector<StackedSource>& matrices,
                                     WeightUse use) override {
    std::unique_ptr<PackedWeight> packed = inner_->Pack(matrices, use);
    allocated_ += packed->bytes;
    packed_.push_back({matrices, use});
    return packed;
  }
  int64_t PackedBytes(int64_t n, int64_t k, DType dtype, WeightUse use) const override {
    planned_.push_back({n, k, dtype, use});
    return inner_->PackedBytes(n, k, dtype, use);
  }
  int64_t ScratchBytes(const OpLimits& limits) const override { return inner_->ScratchBytes(limits); }
  void Reserve(const OpLimits& limits) override { inner_->Reserve(limits); }
  int64_t ExpandedTileBytes(const OpLimits& limits) const override {
    return inner_->ExpandedTileBytes(limits);
  }
  void Synchronize() override { inner_->Synchronize(); }

  // Each op names all fields of its parameters, so that one that is added is not forgotten here.
  void Embed(const EmbedParams& p) override {
    const auto& [a, b, c, d, e, f, g, h, i, j] = p;
    Run(&Backend::Embed, p, 1, a, b, c, d, e, f, g, h, i, j);
  }
  void RmsNorm(const RmsNormParams& p) override {
    const auto& [a, b, c, d, e, f, g, h, i, j, k] = p;
    Run(&Backend::RmsNorm, p, 2, a, b, c, d, e, f, g, h, i, j, k);
  }
  void MatMul(const MatMulParams& p) override {
    const auto& [a, b, c, d, e, f, g] = p;
    Run(&Backend::MatMul, p, 3, a, b, c, d, e, f, g);
  }
  void HeadMatMul(const HeadMatMulParams& p) override {
    const auto& [a, b, c, d, e, f, g, h, i] = p;
    Run(&Backend::HeadMatMul, p, 4, a, b, c, d, e, f, g, h, i);
  }
  void MlaInput(const MlaInputParams& p) override {
    const auto& [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, q] = p;
    Run(&Backend::MlaInput, p, 5, a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, q);
  }
  void MlaDecode(const MlaDecodeParams& p) override {
    const auto& [a, b, c, d, e, rows, f, g, h, i, j, k] = p;
    const auto& [l, m, n, o, q, r, s] = rows;
    Run(&Backend::MlaDecode, p, 6, a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, q, r, s);
  }
  void MlaPrefill(const MlaPrefillParams& p) override { Run(&Backend::MlaPrefill, p, 7); }
  void Mlp(const MlpParams& p) override {
    const auto& [a, b, c, d, e, f] = p;
    Run(&Backend::Mlp, p, 8, a, b, c, d, e, f);
  }
  void Route(const RouteParams& p) override {
    const auto& [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, q] = p;
    Run(&Backend::Route, p, 9, a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, q);
  }
  void Moe(const MoeParams& p) override {
    const auto& [a, b, c, d, e, f, shared, g, h, i, j, k, l] = p;
    const auto& [m, n, o, q, r, s] = shared;
    Run(&Backend::Moe, p, 10, a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, q, r, s);
  }
  void AddRows(const AddRowsParams& p) override {
    const auto& [a, b, c, d, e, f, g] = p;
    Run(&Backend::AddRows, p, 11, a, b, c, d, e, f, g);
  }
  void CopyRows(const CopyRowsParams& p) override {
    const auto& [a, b, c, d, e, f] = p;
    Run(&Backend::CopyRows, p, 12, a, b, c, d, e, f);
  }
  void Sample(const SampleParams& p) override {
    const auto& [a, b, c, d, e, f, g, h, i, j] = p;
    Run(&Backend::Sample, p, 13, a, b, c, d, e, f, g, h, i, j);
  }
  void StoreTokens(const StoreTokensParams& p) override {
    const auto& [a, b, c, d] = p;
    Run(&Backend::StoreTokens, p, 14, a, b, c, d);
  }
  void TokenLogprobs(const TokenLogprobParams& p) override {
    const auto& [a, b, c, d, e, f] = p;
    Run(&Backend::TokenLogprobs, p, 15, a, b, c, d, e, f);
  }

 private:
  template <typename T>
  static uint64_t Word(const T& value) {
    if constexpr (std::is_pointer_v<T>) {
      return reinterpret_cast<uintptr_t>(value);
    } else if constexpr (std::is_same_v<T, float>) {
      return std::bit_cast<uint32_t>(value);
    } else {
      return static_cast<uint64_t>(value);
    }
  }

  template <typename Params, typename... Fields>
  void Run(void (Backend::*op)(const Params&), const Params& p, const Fields&... fields) {
    (trace_.push_back(Word(fields)), ...);
    ((std::is_pointer_v<Fields> ? void() : shape_.push_back(Word(fields))), ...);
    if (computes_) ((*inner_).*op)(p);
  }

  const std::unique_ptr<Backend> inner_;
  bool computes_ = true;
  std::vector<uint64_t> trace_, shape_;              // of the step in progress
  int64_t allocated_ = 0;
  std::vector<Packed> packed_;
  mutable std::vector<Planned> planned_;
  std::map<uint64_t, std::vector<uint64_t>> shapes_;
  std::map<uint64_t, std::vector<uint64_t>> steps_;  // by key
  std::vector<uint64_t> recorded_;
  int deviations_ = 0;
  int not_replayed_ = 0;
};

}  // namespace hadal::testing
