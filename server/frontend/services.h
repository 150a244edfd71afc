#pragma once

#include <grpcpp/grpcpp.h>
#include <grpcpp/impl/service_type.h>

#include <memory>
#include <vector>

#include "server/engine/engine.h"
#include "server/frontend/intake.h"
#include "server/frontend/served_model.h"

namespace hadal {

// The public services, to be registered with a gRPC server; the arguments outlive them.
std::unique_ptr<grpc::Service> MakeChatService(Intake* intake);
std::unique_ptr<grpc::Service> MakeGenerateService(Intake* intake);
std::unique_ptr<grpc::Service> MakeTokenizerService(Intake* intake);
std::unique_ptr<grpc::Service> MakeModelService(const ServedModel* model, const Engine* engine);

// Pings that find a vanished client, and no compressed messages: gRPC inflates one before its size is
// known to anybody, so a few kilobytes could take gigabytes.
void ConfigurePublicServer(grpc::ServerBuilder* builder);

// grpc.health.v1 of the server and of each public service, which all need the worker group. gRPC's own
// calls itself SERVING until a server that listens already tells it something else; this one is
// NOT_SERVING until it is told.
class HealthService {
 public:
  virtual ~HealthService() = default;
  virtual grpc::Service* service() = 0;  // to be registered; lives as long as this object
  // All of them, from any thread. Whoever watches is told; who reads slowly misses what has passed.
  virtual void SetServing(bool serving) = 0;
  // Ends what is watched, when it has been told the last, so that a server that stops does not wait.
  virtual void EndWatches() = 0;
};
std::unique_ptr<HealthService> MakeHealthService();

}  // namespace hadal
