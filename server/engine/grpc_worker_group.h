#pragma once

#include <grpcpp/grpcpp.h>
#include <grpcpp/impl/service_type.h>

#include <cstdint>
#include <memory>
#include <string>

#include "server/engine/engine.h"

namespace hadal {

struct WorkerServiceOptions {
  std::string fingerprint;      // of the served model; empty: any
  int32_t vocab_limit = 0;      // ids from here on have no token
  std::string join_secret;      // empty: none is asked for
};

// hadal.v1.WorkerService: turns each accepted Join stream into a WorkerGroup of `engine`, which
// outlives the service. Refusals: INVALID_ARGUMENT for what is no Hello, PERMISSION_DENIED for a wrong
// secret, FAILED_PRECONDITION for another model or protocol version, ABORTED while another group is
// joined (worth trying again).
std::unique_ptr<grpc::Service> MakeWorkerService(const WorkerServiceOptions& options, Engine* engine);

// Messages of any size but none compressed, and pings that find a vanished worker within about 20 s.
void ConfigureWorkerServer(grpc::ServerBuilder* builder);

}  // namespace hadal
