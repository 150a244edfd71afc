#include "client/connection.h"

#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <thread>

namespace hadal {
namespace {

constexpr int kMaxMessageBytes = 256 << 20;

double SecondsSince(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

std::shared_ptr<grpc::Channel> OpenChannel(const std::string& server) {
  grpc::ChannelArguments args;
  args.SetMaxReceiveMessageSize(kMaxMessageBytes);
  args.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 1000);
  return grpc::CreateCustomChannel(server, grpc::InsecureChannelCredentials(), args);
}

Status FromGrpc(const grpc::Status& status, const std::string& server) {
  if (status.ok()) return OkStatus();
  const auto code = static_cast<StatusCode>(status.error_code());
  const std::string& text = status.error_message();
  if (code == StatusCode::kUnavailable && text.find("connect") != std::string::npos) {
    return Unavailable("no hadal-server answers at {}; start one, or name it with --server", server);
  }
  return {code, text};
}

StatusOr<v1::GetModelResponse> GetModel(const std::shared_ptr<grpc::Channel>& channel,
                                        const std::string& server) {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(5));
  v1::GetModelResponse response;
  const grpc::Status status = v1::ModelService::NewStub(channel)->GetModel(&context, {}, &response);
  if (!status.ok()) return FromGrpc(status, server);
  return response;
}

Status WaitUntilReady(const std::shared_ptr<grpc::Channel>& channel, const std::string& server,
                      double seconds) {
  const auto start = std::chrono::steady_clock::now();
  const bool terminal = isatty(STDERR_FILENO) != 0;
  for (;;) {
    const StatusOr<v1::GetModelResponse> model = GetModel(channel, server);
    if (model.ok() && model->ready()) break;
    const char* missing = model.ok() ? "no worker group has joined yet" : "the server does not answer";
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

}  // namespace hadal
