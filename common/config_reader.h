#pragma once

#include <cstdint>
#include <initializer_list>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace hadal {

// Reads typed fields of one JSON object and gathers everything that is wrong with them, so that a
// user sees all problems at once. A field with a problem yields its default. Null means absent.
class ConfigReader {
 public:
  // `object` and `problems` must outlive the reader. `path` stands before each key in problems:
  // "" or "rope_scaling.". An `object` that is not a JSON object is itself a problem.
  ConfigReader(const nlohmann::json& object, std::string path, std::vector<std::string>* problems)
      : object_(object), path_(std::move(path)), problems_(problems) {
    RequireObject();
  }

  bool Has(const char* key) const;
  // The key is there and holds null.
  bool IsNull(const char* key) const;
  // Null when absent.
  const nlohmann::json* Find(const char* key) const;

  // Absent without a default: "missing". Not an integer, or outside [low, high]: a problem.
  int64_t Int(const char* key, int64_t low, int64_t high, std::optional<int64_t> absent = {});
  float Float(const char* key, double low, double high, std::optional<double> absent = {});
  bool Bool(const char* key, bool absent);
  std::string String(const char* key, std::string_view absent);
  // A field with one of a few names; the problem lists them. Absent without a default: "missing".
  template <typename T>
  T OneOf(const char* key, const std::map<std::string, T>& choices, std::optional<T> absent = {});
  // One id or a list of at most 64 ids in [0, limit); empty when absent.
  std::vector<int32_t> Ids(const char* key, int64_t limit);
  // A field that may be absent but otherwise must hold exactly `value`; `remedy` ends the sentence.
  void Require(const char* key, const nlohmann::json& value, std::string_view remedy);

  void Problem(std::string_view key, std::string_view text);
  // None of these keys has a problem so far, so that what follows from them can be judged.
  bool Good(std::initializer_list<std::string_view> keys) const;

 private:
  void RequireObject();

  const nlohmann::json& object_;
  std::string path_;
  std::vector<std::string>* problems_;
  std::set<std::string, std::less<>> bad_keys_;
};

// A JSON value as it stands in messages, cut to a few words.
std::string DisplayJson(const nlohmann::json& value);

template <typename T>
T ConfigReader::OneOf(const char* key, const std::map<std::string, T>& choices,
                      std::optional<T> absent) {
  std::string names;
  for (const auto& [name, value] : choices) names += (names.empty() ? "" : ", ") + name;
  const nlohmann::json* value = Find(key);
  if (value == nullptr) {
    if (!absent) Problem(key, "missing; set it to one of " + names);
    return absent.value_or(choices.begin()->second);
  }
  if (value->is_string()) {
    const auto found = choices.find(value->get_ref<const std::string&>());
    if (found != choices.end()) return found->second;
  }
  Problem(key, DisplayJson(*value) + " is not supported; supported: " + names);
  return choices.begin()->second;
}

}  // namespace hadal
