#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "common/status.h"

namespace hadal {

// The whole file. NOT_FOUND when there is none, INVALID_ARGUMENT when it is not a regular file or
// holds more than max_bytes.
StatusOr<std::string> ReadFile(const std::string& path, uint64_t max_bytes);

// JSON from outside: INVALID_ARGUMENT, naming `name` and the place, for anything that is not strict
// JSON in valid UTF-8, for a key that stands twice in one object, and for more than 64 levels.
StatusOr<nlohmann::json> ParseJson(std::string_view text, std::string_view name);

// ReadFile and ParseJson; errors name the path.
StatusOr<nlohmann::json> ReadJsonFile(const std::string& path, uint64_t max_bytes);

}  // namespace hadal
