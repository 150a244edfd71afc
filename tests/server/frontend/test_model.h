#pragma once

#include <memory>
#include <utility>

#include "server/frontend/served_model.h"
#include "tests/server/text/text_fixtures.h"

namespace hadal::testing {

// A model whose first 256 ids are the bytes, with ChatML's control tokens behind them.
inline std::unique_ptr<ServedModel> MakeServedModel(int32_t context_length = 100) {
  auto model = std::make_unique<ServedModel>();
  model->name = "toy";
  model->config.architecture = "DeepseekV3ForCausalLM";
  model->config.vocab_size = 300;
  model->config.eos_ids = {257};
  model->tokenizer = Make({.merges = {}, .added = {"<|im_start|>", "<|im_end|>"}});
  model->chat_template = std::move(MakeChatTemplate("chatml", *model->tokenizer)).value();
  model->context_length = context_length;
  model->vocab_limit = 258;
  return model;
}

}  // namespace hadal::testing
