#include "server/text/json_fields.h"

#include "common/utf8.h"

namespace hadal {
namespace {

using nlohmann::json;

StatusOr<const json*> Required(const json& object, const char* key, std::string_view where,
                               bool (json::*is_type)() const noexcept, std::string_view type) {
  const json* member = Member(object, key);
  if (member == nullptr || !(member->*is_type)()) {
    return InvalidArgument("{}: must be {}", FieldPath(where, key), type);
  }
  return member;
}

}  // namespace

std::string FieldPath(std::string_view where, std::string_view key) {
  return where.empty() ? std::string(key) : fmt::format("{}.{}", where, key);
}

std::string QuoteForMessage(std::string_view text) {
  return fmt::format("\"{}\"", DisplayText(text, 60));
}

const json* Member(const json& object, const char* key) {
  if (!object.is_object()) return nullptr;
  const auto found = object.find(key);
  return found == object.end() || found->is_null() ? nullptr : &*found;
}

StatusOr<std::string> StringField(const json& object, const char* key, std::string_view where) {
  HADAL_ASSIGN_OR_RETURN(const json* member,
                         Required(object, key, where, &json::is_string, "a string"));
  return member->get<std::string>();
}

StatusOr<const json*> ArrayField(const json& object, const char* key, std::string_view where) {
  return Required(object, key, where, &json::is_array, "an array");
}

StatusOr<const json*> ObjectField(const json& object, const char* key, std::string_view where) {
  return Required(object, key, where, &json::is_object, "an object");
}

StatusOr<int64_t> IntegerField(const json& object, const char* key, std::string_view where) {
  HADAL_ASSIGN_OR_RETURN(const json* member,
                         Required(object, key, where, &json::is_number_integer, "an integer"));
  return member->get<int64_t>();
}

StatusOr<bool> BoolField(const json& object, const char* key, bool absent, std::string_view where) {
  const json* member = Member(object, key);
  if (member == nullptr) return absent;
  if (!member->is_boolean()) {
    return InvalidArgument("{}: must be true or false", FieldPath(where, key));
  }
  return member->get<bool>();
}

}  // namespace hadal
