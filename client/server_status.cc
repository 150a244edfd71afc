#include "client/server_status.h"

#include <nlohmann/json.hpp>

#include "client/connection.h"

namespace hadal {
namespace {

nlohmann::json ToJson(const v1::GetModelResponse& model) {
  nlohmann::json groups = nlohmann::json::array();
  for (const v1::WorkerGroupInfo& group : model.worker_groups()) {
    groups.push_back({{"epoch", group.epoch()},
                      {"tensor_parallel", group.tensor_parallel()},
                      {"data_parallel", group.data_parallel()},
                      {"kv_blocks", group.kv_blocks()},
                      {"free_kv_blocks", group.free_kv_blocks()}});
  }
  return {{"model", model.model()},
          {"architecture", model.architecture()},
          {"context_length", model.context_length()},
          {"vocab_size", model.vocab_size()},
          {"has_tokenizer", model.has_tokenizer()},
          {"chat_template", model.chat_template()},
          {"fingerprint", model.fingerprint()},
          {"ready", model.ready()},
          {"draining", model.draining()},
          {"running_requests", model.running_requests()},
          {"waiting_requests", model.waiting_requests()},
          {"generated_tokens", model.generated_tokens()},
          {"worker_groups", groups}};
}

}  // namespace

Status PrintServerStatus(const std::string& server, bool json) {
  HADAL_ASSIGN_OR_RETURN(const v1::GetModelResponse model, GetModel(server));
  if (json) {
    fmt::print("{}\n", ToJson(model).dump());
    return OkStatus();
  }
  fmt::print("{} ({}), context {} tokens, {}\n", model.model(), model.architecture(),
             model.context_length(),
             !model.has_chat_template() ? "no chat" : "chat template " + model.chat_template());
  for (const v1::WorkerGroupInfo& group : model.worker_groups()) {
    fmt::print("worker group {}: {} x {} ranks, {} of {} KV blocks free\n", group.epoch(),
               group.tensor_parallel(), group.data_parallel(), group.free_kv_blocks(),
               group.kv_blocks() * group.data_parallel());
  }
  const std::string missing = WhatIsMissing(model);
  fmt::print("{}{}; {} requests run, {} wait; {} tokens generated\n",
             missing.empty() ? "ready" : "not ready: ", missing, model.running_requests(),
             model.waiting_requests(), model.generated_tokens());
  return OkStatus();
}

}  // namespace hadal
