#pragma once

#include <optional>
#include <string>
#include <vector>

#include "common/status.h"
#include "hadal/v1/chat.pb.h"
#include "hadal/v1/generate.pb.h"
#include "server/frontend/served_model.h"
#include "server/scheduler/request.h"

namespace hadal {

// What the answer to a request consists of, besides what the engine needs to know.
struct AnswerOptions {
  std::vector<std::string> stop;
  bool token_ids = false;
  bool logprobs = false;
};

struct BuiltRequest {
  Request request;  // id, arrival and deadline not set
  AnswerOptions answer;
  v1::Accepted accepted;  // request_id not set
};

// From the wire to ids: validates every field, resolves defaults, renders and encodes. Errors are
// INVALID_ARGUMENT naming the field, NOT_FOUND for another model's name, and FAILED_PRECONDITION for
// what this model's files do not allow. Thread-safe; takes a time that grows with the text.
StatusOr<BuiltRequest> BuildRequest(const v1::ChatRequest& wire, const ServedModel& model);
StatusOr<BuiltRequest> BuildRequest(const v1::GenerateRequest& wire, const ServedModel& model);

// Messages as the template's pieces: roles and contents checked, then rendered.
StatusOr<std::vector<RenderedPiece>> RenderMessages(
    const google::protobuf::RepeatedPtrField<v1::ChatMessage>& messages, std::optional<bool> thinking,
    const ServedModel& model);

// FAILED_PRECONDITION when the model has no tokenizer; `what` names the call or field that needs it.
Status RequireTokenizer(const ServedModel& model, std::string_view what);

// INVALID_ARGUMENT naming `field` and the first id outside the vocabulary.
Status CheckTokenIds(const google::protobuf::RepeatedField<int32_t>& ids, std::string_view field,
                     const ServedModel& model);

}  // namespace hadal
