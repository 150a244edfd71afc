#include "hadal/v1/tokenizer.grpc.pb.h"
#include "server/frontend/services.h"

namespace hadal {
namespace {

using grpc::ByteBuffer;
using grpc::CallbackServerContext;

template <typename Message>
std::optional<bool> Thinking(const Message& message) {
  return message.has_thinking() ? std::optional(message.thinking()) : std::nullopt;
}

Status Encode(const v1::EncodeRequest& request, const ServedModel& model, v1::EncodeResponse* out) {
  HADAL_RETURN_IF_ERROR(RequireTokenizer(model, "Encode"));
  const Tokenizer& tokenizer = *model.tokenizer;
  const bool add_bos = request.has_add_bos() ? request.add_bos() : tokenizer.add_bos();
  if (add_bos && !tokenizer.bos_id()) {
    return FailedPrecondition("add_bos: the tokenizer has no beginning-of-sequence token");
  }
  if (add_bos) out->add_token_ids(*tokenizer.bos_id());
  const std::vector<int32_t> ids = request.parse_control_tokens()
                                       ? tokenizer.EncodeWithControl(request.text())
                                       : tokenizer.EncodeText(request.text());
  out->mutable_token_ids()->Add(ids.begin(), ids.end());
  return OkStatus();
}

Status Decode(const v1::DecodeRequest& request, const ServedModel& model, v1::DecodeResponse* out) {
  HADAL_RETURN_IF_ERROR(RequireTokenizer(model, "Decode"));
  HADAL_RETURN_IF_ERROR(CheckTokenIds(request.token_ids(), "token_ids", model));
  out->set_text(model.tokenizer->Decode({request.token_ids().data(), size_t(request.token_ids_size())},
                                        request.skip_special_tokens()));
  return OkStatus();
}

Status Count(const v1::CountRequest& request, const ServedModel& model, v1::CountResponse* out) {
  HADAL_RETURN_IF_ERROR(RequireTokenizer(model, "Count"));
  std::vector<int32_t> ids;
  switch (request.input_case()) {
    case v1::CountRequest::kText: ids = model.tokenizer->EncodeText(request.text()); break;
    case v1::CountRequest::kMessages: {
      const v1::ChatMessages& chat = request.messages();
      HADAL_ASSIGN_OR_RETURN(const auto pieces,
                             RenderMessages(chat.messages(), Thinking(chat), model));
      ids = EncodeRendered(pieces, *model.tokenizer);
      break;
    }
    case v1::CountRequest::INPUT_NOT_SET:
      return InvalidArgument("input: text or messages is needed");
  }
  out->set_tokens(static_cast<int32_t>(ids.size()));
  return OkStatus();
}

Status RenderChat(const v1::RenderChatRequest& request, const ServedModel& model,
                  v1::RenderChatResponse* out) {
  HADAL_ASSIGN_OR_RETURN(const auto pieces,
                         RenderMessages(request.messages(), Thinking(request), model));
  for (const RenderedPiece& piece : pieces) out->mutable_text()->append(piece.text);
  const std::vector<int32_t> ids = EncodeRendered(pieces, *model.tokenizer);
  out->mutable_token_ids()->Add(ids.begin(), ids.end());
  return OkStatus();
}

using Base = v1::TokenizerService::WithRawCallbackMethod_Encode<
    v1::TokenizerService::WithRawCallbackMethod_Decode<
        v1::TokenizerService::WithRawCallbackMethod_Count<
            v1::TokenizerService::WithRawCallbackMethod_RenderChat<v1::TokenizerService::Service>>>>;

class TokenizerService final : public Base {
 public:
  explicit TokenizerService(Intake* intake) : intake_(intake) {}

  grpc::ServerUnaryReactor* Encode(CallbackServerContext* context, const ByteBuffer* request,
                                   ByteBuffer* response) override {
    return intake_->Compute(context, request, response, &hadal::Encode);
  }
  grpc::ServerUnaryReactor* Decode(CallbackServerContext* context, const ByteBuffer* request,
                                   ByteBuffer* response) override {
    return intake_->Compute(context, request, response, &hadal::Decode);
  }
  grpc::ServerUnaryReactor* Count(CallbackServerContext* context, const ByteBuffer* request,
                                  ByteBuffer* response) override {
    return intake_->Compute(context, request, response, &hadal::Count);
  }
  grpc::ServerUnaryReactor* RenderChat(CallbackServerContext* context, const ByteBuffer* request,
                                       ByteBuffer* response) override {
    return intake_->Compute(context, request, response, &hadal::RenderChat);
  }

 private:
  Intake* const intake_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeTokenizerService(Intake* intake) {
  return std::make_unique<TokenizerService>(intake);
}

}  // namespace hadal
