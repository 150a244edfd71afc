#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "common/model_config.h"
#include "tests/common/hf_configs.h"
#include "tests/support/catch.h"

namespace hadal::testing {

// A config that must be accepted.
inline ModelConfig ParsedConfig(const nlohmann::json& config) {
  const auto parsed = ParseModelConfig(config, nullptr);
  INFO(parsed.status().message());
  REQUIRE(parsed.ok());
  return *parsed;
}

// That of a released model, see HfConfig().
inline ModelConfig Released(const std::string& name) { return ParsedConfig(HfConfig(name)); }

// Why a config is refused, which it must be.
inline std::string Refusal(const nlohmann::json& config) {
  const auto parsed = ParseModelConfig(config, nullptr);
  REQUIRE_FALSE(parsed.ok());
  CHECK(parsed.status().code() == StatusCode::kInvalidArgument);
  return parsed.status().message();
}

}  // namespace hadal::testing
