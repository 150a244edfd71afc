#include "hadal/v1/chat.grpc.pb.h"
#include "hadal/v1/generate.grpc.pb.h"
#include "server/frontend/services.h"

namespace hadal {
namespace {

using grpc::ByteBuffer;
using grpc::CallbackServerContext;

using ChatBase = v1::ChatService::WithRawCallbackMethod_Chat<
    v1::ChatService::WithRawCallbackMethod_ChatOnce<v1::ChatService::Service>>;
using GenerateBase = v1::GenerateService::WithRawCallbackMethod_Generate<
    v1::GenerateService::WithRawCallbackMethod_GenerateOnce<v1::GenerateService::Service>>;

class ChatService final : public ChatBase {
 public:
  explicit ChatService(Intake* intake) : intake_(intake) {}

  grpc::ServerWriteReactor<ByteBuffer>* Chat(CallbackServerContext* context,
                                             const ByteBuffer* request) override {
    return intake_->Stream<v1::ChatRequest>(context, request);
  }
  grpc::ServerUnaryReactor* ChatOnce(CallbackServerContext* context, const ByteBuffer* request,
                                     ByteBuffer* response) override {
    return intake_->Once<v1::ChatRequest>(context, request, response);
  }

 private:
  Intake* const intake_;
};

class GenerateService final : public GenerateBase {
 public:
  explicit GenerateService(Intake* intake) : intake_(intake) {}

  grpc::ServerWriteReactor<ByteBuffer>* Generate(CallbackServerContext* context,
                                                 const ByteBuffer* request) override {
    return intake_->Stream<v1::GenerateRequest>(context, request);
  }
  grpc::ServerUnaryReactor* GenerateOnce(CallbackServerContext* context, const ByteBuffer* request,
                                         ByteBuffer* response) override {
    return intake_->Once<v1::GenerateRequest>(context, request, response);
  }

 private:
  Intake* const intake_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeChatService(Intake* intake) {
  return std::make_unique<ChatService>(intake);
}

std::unique_ptr<grpc::Service> MakeGenerateService(Intake* intake) {
  return std::make_unique<GenerateService>(intake);
}

}  // namespace hadal
