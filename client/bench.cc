#include "client/bench.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <cstdio>
#include <mutex>
#include <nlohmann/json.hpp>
#include <random>
#include <thread>

#include "client/connection.h"
#include "hadal/v1/generate.grpc.pb.h"

namespace hadal {
namespace {

using Instant = std::chrono::steady_clock::time_point;

double MsBetween(Instant from, Instant to) {
  return std::chrono::duration<double, std::milli>(to - from).count();
}

class LoadTest {
 public:
  LoadTest(const BenchOptions& options, int vocab_size)
      : options_(options), vocab_size_(vocab_size) {}

  BenchReport Run() {
    const Instant start = std::chrono::steady_clock::now();
    const std::jthread progress([this](std::stop_token stop) { ReportProgress(stop); });
    std::vector<std::thread> threads;
    for (int i = 0; i < std::min(options_.concurrency, options_.requests); ++i) {
      threads.emplace_back([this] {
        const auto stub = v1::GenerateService::NewStub(channel_);
        for (int n = next_++; n < options_.requests; n = next_++) OneRequest(stub.get(), n);
      });
    }
    for (std::thread& thread : threads) thread.join();
    const double seconds = MsBetween(start, std::chrono::steady_clock::now()) / 1e3;
    return MakeReport(times_, seconds, options_.prompt_tokens, errors_);
  }

 private:
  // A line every two seconds.
  void ReportProgress(std::stop_token stop) {
    std::unique_lock lock(mutex_);
    std::condition_variable_any never;
    while (!never.wait_for(lock, stop, std::chrono::seconds(2), [] { return false; }) &&
           !stop.stop_requested()) {
      int failed = 0;
      for (const auto& [code, failures] : errors_) failed += failures.count;
      fmt::print(stderr, "{} of {} requests done{}, {} tokens\n", times_.size() + failed,
                 options_.requests, failed > 0 ? fmt::format(" ({} failed)", failed) : "",
                 tokens_.load());
    }
  }

  // Fresh ids for every request, so that no prompt is found in the prefix cache.
  v1::GenerateRequest MakeRequest(int number) const {
    const uint64_t seed = *options_.request.seed;
    std::seed_seq seeds{static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32),
                        static_cast<uint32_t>(number)};
    std::mt19937 rng(seeds);
    std::uniform_int_distribution<int> token(0, vocab_size_ - 1);
    v1::GenerateRequest request;
    for (int i = 0; i < options_.prompt_tokens; ++i) request.mutable_token_ids()->add_ids(token(rng));
    *request.mutable_sampling() = ToSamplingOptions(options_.request);
    request.mutable_sampling()->set_max_tokens(options_.max_tokens);
    request.mutable_sampling()->set_ignore_eos(!options_.stop_at_eos);
    request.mutable_output()->set_return_token_ids(true);
    return request;
  }

  void OneRequest(v1::GenerateService::Stub* stub, int number) {
    const v1::GenerateRequest request = MakeRequest(number);
    grpc::ClientContext context;
    context.set_deadline(DeadlineAfter(options_.request.timeout_s));
    const Instant start = std::chrono::steady_clock::now();
    Instant last = start;
    RequestTimes times;
    const auto reader = stub->Generate(&context, request);
    v1::Event event;
    while (reader->Read(&event)) {
      if (event.has_summary()) times.cached_tokens = event.summary().usage().cached_tokens();
      if (!event.has_delta() || event.delta().token_ids_size() == 0) continue;
      const Instant now = std::chrono::steady_clock::now();
      notice_.Heard();
      if (times.tokens == 0) times.ttft = MsBetween(start, now);
      else times.itl.push_back(MsBetween(last, now));
      times.tokens += event.delta().token_ids_size();
      tokens_ += event.delta().token_ids_size();
      last = now;
    }
    const grpc::Status status = reader->Finish();
    times.e2e = MsBetween(start, last);
    if (times.tokens > 1) times.tpot = (times.e2e - times.ttft) / (times.tokens - 1);
    const std::scoped_lock lock(mutex_);
    if (status.ok()) return times_.push_back(std::move(times));
    Failures& failures = errors_[static_cast<StatusCode>(status.error_code())];
    if (++failures.count > 1) return;
    failures.sample =
        FromGrpc(status, options_.request.server, options_.request.timeout_s).message();
  }

  const BenchOptions options_;
  const std::shared_ptr<grpc::Channel> channel_ = OpenChannel(options_.request.server);
  WaitNotice notice_{options_.request.server};
  const int vocab_size_;
  std::atomic<int> next_{0};
  std::atomic<int64_t> tokens_{0};
  std::mutex mutex_;
  std::vector<RequestTimes> times_;
  std::map<StatusCode, Failures> errors_;
};

nlohmann::json ToJson(const Percentiles& p) {
  return {{"p50", p.p50}, {"p90", p.p90}, {"p99", p.p99}};
}

void PrintJson(const BenchOptions& options, const BenchReport& report) {
  nlohmann::json errors = nlohmann::json::object(), samples = errors;
  for (const auto& [code, failures] : report.errors) {
    errors[std::string(StatusCodeName(code))] = failures.count;
    samples[std::string(StatusCodeName(code))] = failures.sample;
  }
  const nlohmann::json out = {
      {"concurrency", options.concurrency},
      {"requests", options.requests},
      {"prompt_tokens", options.prompt_tokens},
      {"max_tokens", options.max_tokens},
      {"seed", *options.request.seed},
      {"completed", report.completed},
      {"seconds", report.seconds},
      {"cached_tokens", report.cached_tokens},
      {"generated_tokens", report.generated_tokens},
      {"output_tokens_per_s", report.generated_tokens / report.seconds},
      {"total_tokens_per_s", (report.generated_tokens + report.prompt_tokens) / report.seconds},
      {"ttft_ms", ToJson(report.ttft_ms)},
      {"itl_ms", ToJson(report.itl_ms)},
      {"tpot_ms", ToJson(report.tpot_ms)},
      {"e2e_ms", ToJson(report.e2e_ms)},
      {"errors", errors},
      {"error_samples", samples}};
  fmt::print("{}\n", out.dump());
}

void PrintTable(const BenchReport& report, uint64_t seed) {
  fmt::print("{} requests in {:.1f} s: {:.1f} output tokens/s, {:.1f} tokens/s with prompts\n",
             report.completed, report.seconds, report.generated_tokens / report.seconds,
             (report.generated_tokens + report.prompt_tokens) / report.seconds);
  fmt::print("seed {}; {} of {} prompt tokens found in the prefix cache\n", seed,
             report.cached_tokens, report.prompt_tokens);
  fmt::print("{:<10} {:>10} {:>10} {:>10}\n", "ms", "p50", "p90", "p99");
  auto row = [](const char* name, const Percentiles& p) {
    fmt::print("{:<10} {:>10.1f} {:>10.1f} {:>10.1f}\n", name, p.p50, p.p90, p.p99);
  };
  row("TTFT", report.ttft_ms);
  row("ITL", report.itl_ms);
  row("TPOT", report.tpot_ms);
  row("E2E", report.e2e_ms);
}

}  // namespace

Percentiles ComputePercentiles(std::vector<double> samples) {
  if (samples.empty()) return {};
  std::sort(samples.begin(), samples.end());
  auto rank = [&](double q) {
    const auto n = static_cast<double>(samples.size());
    return samples[static_cast<size_t>(std::max(std::ceil(q * n) - 1, 0.0))];
  };
  return {rank(0.5), rank(0.9), rank(0.99)};
}

BenchReport MakeReport(const std::vector<RequestTimes>& times, double seconds, int prompt_tokens,
                       std::map<StatusCode, Failures> errors) {
  BenchReport report;
  report.seconds = seconds;
  report.completed = static_cast<int>(times.size());
  report.errors = std::move(errors);
  std::vector<double> ttft, itl, tpot, e2e;
  for (const RequestTimes& t : times) {
    report.prompt_tokens += prompt_tokens;
    report.cached_tokens += t.cached_tokens;
    report.generated_tokens += t.tokens;
    ttft.push_back(t.ttft);
    e2e.push_back(t.e2e);
    if (t.tokens > 1) tpot.push_back(t.tpot);
    itl.insert(itl.end(), t.itl.begin(), t.itl.end());
  }
  report.ttft_ms = ComputePercentiles(std::move(ttft));
  report.itl_ms = ComputePercentiles(std::move(itl));
  report.tpot_ms = ComputePercentiles(std::move(tpot));
  report.e2e_ms = ComputePercentiles(std::move(e2e));
  return report;
}

Status StatusOf(const std::map<StatusCode, Failures>& errors, int requests) {
  int failed = 0;
  auto most = errors.begin();
  for (auto it = errors.begin(); it != errors.end(); ++it) {
    failed += it->second.count;
    if (it->second.count > most->second.count) most = it;
  }
  if (failed == 0) return OkStatus();
  return {most->first, fmt::format("{} of {} requests failed", failed, requests)};
}

Status RunBench(const BenchOptions& given) {
  BenchOptions options = given;
  if (!options.request.seed) options.request.seed = std::random_device()();
  const std::string& server = options.request.server;
  if (options.wait_s > 0) HADAL_RETURN_IF_ERROR(WaitUntilReady(server, options.wait_s));
  HADAL_ASSIGN_OR_RETURN(const v1::GetModelResponse model, GetModel(server));
  const BenchReport report = LoadTest(options, model.vocab_size()).Run();
  if (options.json) {
    PrintJson(options, report);
  } else {
    PrintTable(report, *options.request.seed);
  }
  for (const auto& [code, failures] : report.errors) {
    fmt::print(stderr, "{} x {}: {}\n", failures.count, StatusCodeName(code), failures.sample);
  }
  return StatusOf(report.errors, options.requests);
}

}  // namespace hadal
