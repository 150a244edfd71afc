#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "common/status.h"

namespace hadal {

// Typed reads of JSON from outside. `where` is the path of `object`, for messages; empty at the
// top. INVALID_ARGUMENT when `object` is not an object, or the member is missing or of another
// type.
StatusOr<std::string> StringField(const nlohmann::json& object, const char* key,
                                  std::string_view where);
StatusOr<const nlohmann::json*> ArrayField(const nlohmann::json& object, const char* key,
                                           std::string_view where);
StatusOr<const nlohmann::json*> ObjectField(const nlohmann::json& object, const char* key,
                                            std::string_view where);
StatusOr<int64_t> IntegerField(const nlohmann::json& object, const char* key,
                               std::string_view where);
// Missing or null: `absent`.
StatusOr<bool> BoolField(const nlohmann::json& object, const char* key, bool absent,
                         std::string_view where);

// The member, or null when it is missing or JSON null. REQUIRES: nothing of `object`.
const nlohmann::json* Member(const nlohmann::json& object, const char* key);

// "a.b" from "a" and "b".
std::string FieldPath(std::string_view where, std::string_view key);
// Shortened and printable, in quotes.
std::string QuoteForMessage(std::string_view text);

}  // namespace hadal
