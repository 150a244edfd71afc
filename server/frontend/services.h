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

}  // namespace hadal
