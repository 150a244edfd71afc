#pragma once

#include <grpcpp/grpcpp.h>

#include <memory>
#include <string>

#include "common/status.h"
#include "hadal/v1/model.grpc.pb.h"

namespace hadal {

// A channel to hadal-server; nothing is dialled before the first call.
std::shared_ptr<grpc::Channel> OpenChannel(const std::string& server);

// The server's answer as a Status; an unreachable server names the address and the remedy.
Status FromGrpc(const grpc::Status& status, const std::string& server);

StatusOr<v1::GetModelResponse> GetModel(const std::shared_ptr<grpc::Channel>& channel,
                                        const std::string& server);

// Asks until the server is ready, for at most `seconds`, with a progress line on a terminal's stderr.
// DEADLINE_EXCEEDED says what was missing.
Status WaitUntilReady(const std::shared_ptr<grpc::Channel>& channel, const std::string& server,
                      double seconds);

}  // namespace hadal
