#include "client/connection.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>

namespace hadal {
namespace {

constexpr int kMaxMessageBytes = 256 << 20;
constexpr std::chrono::seconds kSilence{2};
constexpr double kProbeSeconds = 2;

double SecondsSince(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

std::shared_ptr<grpc::Channel> OpenChannel(const std::string& server) {
  grpc::ChannelArguments args;
  args.SetMaxReceiveMessageSize(kMaxMessageBytes);
  args.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 1000);
  args.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);  // the server is on this network
  args.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  return grpc::CreateCustomChannel(server, grpc::InsecureChannelCredentials(), args);
}

std::chrono::system_clock::time_point DeadlineAfter(double seconds) {
  return std::chrono::system_clock::now() +
         std::chrono::milliseconds(static_cast<int64_t>(seconds * 1e3));
}

Status FromGrpc(const grpc::Status& status, const std::string& server, double timeout_s) {
  if (status.ok()) return OkStatus();
  const auto code = static_cast<StatusCode>(status.error_code());
  const std::string& text = status.error_message();
  if (code == StatusCode::kUnavailable && text.find("connect") != std::string::npos) {
    return Unavailable("no hadal-server answers at {}; start one, or name it with --server",
                       server);
  }
  if (code == StatusCode::kUnimplemented) {
    return {code,
            fmt::format("{} serves no clients: --server must be hadal-server's --listen address; "
                        "its --worker-listen address is for hadal-worker",
                        server)};
  }
  if (code == StatusCode::kDeadlineExceeded) {
    const std::string missing = WhatIsMissing(GetModel(server, kProbeSeconds));
    return {code, fmt::format("not answered within --timeout {} s{}{}", timeout_s,
                              missing.empty() ? "" : ": ", missing)};
  }
  return {code, text};
}

StatusOr<v1::GetModelResponse> GetModel(const std::string& server, double timeout_s) {
  grpc::ClientContext context;
  context.set_deadline(DeadlineAfter(timeout_s));
  v1::GetModelResponse response;
  const auto stub = v1::ModelService::NewStub(OpenChannel(server));
  const grpc::Status status = stub->GetModel(&context, {}, &response);
  if (status.error_code() == grpc::StatusCode::DEADLINE_EXCEEDED) {
    return Unavailable("the server at {} does not answer within {:.1f} s", server, timeout_s);
  }
  if (!status.ok()) return FromGrpc(status, server, timeout_s);
  return response;
}

std::string WhatIsMissing(const StatusOr<v1::GetModelResponse>& model) {
  if (!model.ok()) return "the server does not answer";
  if (model->ready()) return "";
  return model->draining() ? "the server is shutting down" : "no worker group has joined yet";
}

Status WaitUntilReady(const std::string& server, double seconds) {
  const auto start = std::chrono::steady_clock::now();
  const bool terminal = isatty(STDERR_FILENO) != 0;
  for (;;) {
    const double left = seconds - SecondsSince(start);
    const StatusOr<v1::GetModelResponse> model =
        GetModel(server, std::clamp(left, 1.0, kProbeSeconds));
    const std::string missing = WhatIsMissing(model);
    if (missing.empty()) break;
    if (model.status().code() == StatusCode::kUnimplemented) return model.status();
    if (SecondsSince(start) >= seconds) {
      return {StatusCode::kDeadlineExceeded,
              fmt::format("{} is not ready after {:.0f} s: {}", server, seconds, missing)};
    }
    if (terminal) fmt::print(stderr, "\rwaiting: {} ({:.0f} s) ", missing, SecondsSince(start));
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
  }
  if (terminal) fmt::print(stderr, "\r\033[K");
  return OkStatus();
}

WaitNotice::WaitNotice(std::string server) : server_(std::move(server)) {
  thread_ = std::jthread([this](std::stop_token stop) {
    std::unique_lock lock(mutex_);
    if (changed_.wait_for(lock, stop, kSilence, [this] { return heard_; })) return;
    lock.unlock();
    if (stop.stop_requested()) return;
    const std::string missing = WhatIsMissing(GetModel(server_, kProbeSeconds));
    lock.lock();
    if (!missing.empty() && !heard_ && !stop.stop_requested()) {
      fmt::print(stderr, "waiting: {}\n", missing);
    }
  });
}

void WaitNotice::Heard() {
  const std::lock_guard lock(mutex_);
  heard_ = true;
  changed_.notify_one();
}

}  // namespace hadal
