#pragma once

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "kernels/backend.h"

namespace hadal {

// Calls of one op, products by shape.
struct OpTime {
  std::string op;
  int calls = 0;
  double seconds = 0;
};

// Another backend with a clock around each op, which it awaits: nothing overlaps or is replayed, so
// that a step takes at least as long as without.
class TimedBackend : public Backend {
 public:
  explicit TimedBackend(std::unique_ptr<Backend> backend) : backend_(std::move(backend)) {}

  // Since the last call, in the order in which the ops were first called.
  std::vector<OpTime> TakeTimes() { return std::exchange(times_, {}); }

  std::string name() const override { return backend_->name(); }
  DType activation_dtype() const override { return backend_->activation_dtype(); }
  std::unique_ptr<DeviceBuffer> Allocate(int64_t bytes) override {
    return backend_->Allocate(bytes);
  }
  std::unique_ptr<HostBuffer> AllocateHost(int64_t bytes) override {
    return backend_->AllocateHost(bytes);
  }
  int64_t AvailableBytes(int ranks) const override { return backend_->AvailableBytes(ranks); }
  void CopyToDevice(void* device, const void* host, int64_t bytes) override {
    backend_->CopyToDevice(device, host, bytes);
  }
  void CopyToHost(void* host, const void* device, int64_t bytes) override {
    backend_->CopyToHost(host, device, bytes);
  }
  uint64_t StartCopyToHost(void* host, const void* device, int64_t bytes) override {
    return backend_->StartCopyToHost(host, device, bytes);
  }
  bool Done(uint64_t ticket) override { return backend_->Done(ticket); }
  void Await(uint64_t ticket) override { backend_->Await(ticket); }
  std::unique_ptr<PackedWeight> Pack(const std::vector<StackedSource>& matrices,
                                     WeightUse use) override {
    return backend_->Pack(matrices, use);
  }
  int64_t PackedBytes(int64_t n, int64_t k, DType dtype, WeightUse use) const override {
    return backend_->PackedBytes(n, k, dtype, use);
  }
  int64_t ScratchBytes(const OpLimits& limits) const override {
    return backend_->ScratchBytes(limits);
  }
  void Reserve(const OpLimits& limits) override { backend_->Reserve(limits); }
  int64_t ExpandedTileBytes(const OpLimits& limits) const override {
    return backend_->ExpandedTileBytes(limits);
  }
  void Replay(uint64_t, const std::function<void()>& ops) override { ops(); }
  bool replays() const override { return false; }

  void Embed(const EmbedParams& p) override { Time("embed", &Backend::Embed, p); }
  void RmsNorm(const RmsNormParams& p) override { Time("norm", &Backend::RmsNorm, p); }
  void NormRoute(const RmsNormParams& norm, const RouteParams& p) override {
    Time("norm, route", &Backend::NormRoute, norm, p);
  }
  void NormMatMul(const RmsNormParams& norm, const MatMulParams& p) override {
    Time("norm, matmul" + Shape(p.w), &Backend::NormMatMul, norm, p);
  }
  void MlaInputAndAbsorb(const MlaInputParams& input, const HeadMatMulParams& p) override {
    Time("mla input, head matmul" + Shape(p.w), &Backend::MlaInputAndAbsorb, input, p);
  }
  void MatMul(const MatMulParams& p) override {
    Time("matmul" + Shape(p.w), &Backend::MatMul, p);
  }
  void HeadMatMul(const HeadMatMulParams& p) override {
    Time("head matmul" + Shape(p.w), &Backend::HeadMatMul, p);
  }
  void MlaInput(const MlaInputParams& p) override { Time("mla input", &Backend::MlaInput, p); }
  void MlaDecode(const MlaDecodeParams& p) override { Time("mla decode", &Backend::MlaDecode, p); }
  void MlaPrefill(const MlaPrefillParams& p) override {
    Time("mla prefill", &Backend::MlaPrefill, p);
  }
  void MlaPrefillAndMatMul(const MlaPrefillParams& p, const MatMulParams& out) override {
    Time("mla prefill, matmul" + Shape(out.w), &Backend::MlaPrefillAndMatMul, p, out);
  }
  void Mlp(const MlpParams& p) override { Time("mlp" + Shape(p.w13), &Backend::Mlp, p); }
  void Route(const RouteParams& p) override { Time("route", &Backend::Route, p); }
  void Moe(const MoeParams& p) override { Time("moe", &Backend::Moe, p); }
  void AddRows(const AddRowsParams& p) override { Time("add rows", &Backend::AddRows, p); }
  void CopyRows(const CopyRowsParams& p) override { Time("copy rows", &Backend::CopyRows, p); }
  void Sample(const SampleParams& p) override { Time("sample", &Backend::Sample, p); }
  void StoreTokens(const StoreTokensParams& p) override {
    Time("store tokens", &Backend::StoreTokens, p);
  }
  void TokenLogprobs(const TokenLogprobParams& p) override {
    Time("token logprobs", &Backend::TokenLogprobs, p);
  }
  void Synchronize() override { backend_->Synchronize(); }

 private:
  static std::string Shape(const PackedWeight* w);
  template <typename... Params>
  void Time(const std::string& op, void (Backend::*run)(const Params&...), const Params&... p) {
    const double begin = Now();
    (backend_.get()->*run)(p...);
    backend_->Synchronize();
    Add(op, Now() - begin);
  }
  static double Now();  // seconds
  void Add(const std::string& op, double seconds);

  std::unique_ptr<Backend> backend_;
  std::vector<OpTime> times_;
};

}  // namespace hadal
