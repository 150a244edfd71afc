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

// The first line of --join-secret-file, without spaces or carriage returns at its end; "" for no
// path.
StatusOr<std::string> ReadSecret(const std::string& path);

// JSON from outside: INVALID_ARGUMENT, naming `name` and the place, for anything that is not strict
// JSON in valid UTF-8, for a key that stands twice in one object, and for more than 64 levels.
StatusOr<nlohmann::json> ParseJson(std::string_view text, std::string_view name);

// ReadFile and ParseJson; errors name the path.
StatusOr<nlohmann::json> ReadJsonFile(const std::string& path, uint64_t max_bytes);

}  // namespace hadal
