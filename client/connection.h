#pragma once

#include <grpcpp/grpcpp.h>

#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "common/status.h"
#include "hadal/v1/model.grpc.pb.h"

namespace hadal {

// A channel to hadal-server, past any HTTP proxy, with connections of its own: it inherits no
// back-off from an earlier attempt. Nothing is dialled before the first call.
std::shared_ptr<grpc::Channel> OpenChannel(const std::string& server);

std::chrono::system_clock::time_point DeadlineAfter(double seconds);

// How a request with --timeout ended, as a Status; an unreachable server, the wrong one of its two
// addresses and a deadline that has passed are explained.
Status FromGrpc(const grpc::Status& status, const std::string& server, double timeout_s);

StatusOr<v1::GetModelResponse> GetModel(const std::string& server, double timeout_s = 5);

// What keeps the server from answering; empty: nothing.
std::string WhatIsMissing(const StatusOr<v1::GetModelResponse>& model);

// Asks until the server is ready, for at most `seconds`, with a progress line on a terminal's
// stderr. DEADLINE_EXCEEDED says what was missing.
Status WaitUntilReady(const std::string& server, double seconds);

// Beside a call: says on stderr what is missing when nothing has been heard for two seconds.
class WaitNotice {
 public:
  explicit WaitNotice(std::string server);
  void Heard();

 private:
  const std::string server_;
  std::mutex mutex_;
  std::condition_variable_any changed_;
  bool heard_ = false;
  std::jthread thread_;  // last: it uses the others
};

}  // namespace hadal
