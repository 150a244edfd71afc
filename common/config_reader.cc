#include "common/config_reader.h"

#include <algorithm>

#include "common/check.h"
#include "common/utf8.h"

namespace hadal {
namespace {
using nlohmann::json;

constexpr size_t kMaxIds = 64;

// The value of an integer that fits into int64_t; floats such as 16.0 are no integers here.
std::optional<int64_t> AsInt(const json& value) {
  if (value.is_number_unsigned()) {
    const auto number = value.get<uint64_t>();
    return number <= INT64_MAX ? static_cast<int64_t>(number) : INT64_MAX;
  }
  if (value.is_number_integer()) return value.get<int64_t>();
  return std::nullopt;
}

}  // namespace

std::string DisplayJson(const json& value) {
  if (value.is_object()) return "an object";
  if (value.is_array() && value.size() > 8) return fmt::format("a list of {}", value.size());
  if (value.is_array()) {
    std::string out;
    for (const json& item : value) out += (out.empty() ? "[" : ", ") + DisplayJson(item);
    return DisplayText(out.empty() ? "[" : out, 120) + "]";
  }
  return DisplayText(value.dump(-1, ' ', false, json::error_handler_t::replace), 60);
}

void ConfigReader::RequireObject() {
  if (object_.is_object()) return;
  const std::string name = path_.empty() ? "the configuration" : path_.substr(0, path_.size() - 1);
  problems_->push_back(name + ": must be a JSON object, not " + DisplayJson(object_));
}

const json* ConfigReader::Find(const char* key) const {
  if (!object_.is_object()) return nullptr;
  const auto found = object_.find(key);
  return found == object_.end() || found->is_null() ? nullptr : &*found;
}

bool ConfigReader::Has(const char* key) const { return Find(key) != nullptr; }

bool ConfigReader::IsNull(const char* key) const {
  const auto found = object_.is_object() ? object_.find(key) : object_.end();
  return found != object_.end() && found->is_null();
}

void ConfigReader::Problem(std::string_view key, std::string_view text) {
  problems_->push_back(fmt::format("{}{}: {}", path_, key, text));
  bad_keys_.emplace(key);
}

bool ConfigReader::Good(std::initializer_list<std::string_view> keys) const {
  return std::none_of(keys.begin(), keys.end(),
                      [this](std::string_view key) { return bad_keys_.count(key) != 0; });
}

int64_t ConfigReader::Int(const char* key, int64_t low, int64_t high,
                          std::optional<int64_t> absent) {
  const int64_t fallback = absent.value_or(low);
  const json* value = Find(key);
  if (value == nullptr) {
    if (!absent) Problem(key, fmt::format("missing; set it to an integer in [{}, {}]", low, high));
    return fallback;
  }
  const std::optional<int64_t> number = AsInt(*value);
  if (!number) {
    Problem(key, fmt::format("must be an integer, not {}", DisplayJson(*value)));
    return fallback;
  }
  if (*number < low || *number > high) {
    Problem(key, fmt::format("{} is outside [{}, {}]", DisplayJson(*value), low, high));
    return fallback;
  }
  return *number;
}

float ConfigReader::Float(const char* key, double low, double high, std::optional<double> absent) {
  const double fallback = absent.value_or(low);
  const json* value = Find(key);
  if (value == nullptr) {
    if (!absent) Problem(key, fmt::format("missing; set it to a number in [{}, {}]", low, high));
    return static_cast<float>(fallback);
  }
  if (!value->is_number()) {
    Problem(key, fmt::format("must be a number, not {}", DisplayJson(*value)));
    return static_cast<float>(fallback);
  }
  const auto number = value->get<double>();
  if (!(number >= low && number <= high)) {
    Problem(key, fmt::format("{} is outside [{}, {}]", DisplayJson(*value), low, high));
    return static_cast<float>(fallback);
  }
  return static_cast<float>(number);
}

bool ConfigReader::Bool(const char* key, bool absent) {
  const json* value = Find(key);
  if (value == nullptr) return absent;
  if (value->is_boolean()) return value->get<bool>();
  Problem(key, fmt::format("must be true or false, not {}", DisplayJson(*value)));
  return absent;
}

std::string ConfigReader::String(const char* key, std::string_view absent) {
  const json* value = Find(key);
  if (value == nullptr) return std::string(absent);
  if (value->is_string()) return value->get<std::string>();
  Problem(key, fmt::format("must be a string, not {}", DisplayJson(*value)));
  return std::string(absent);
}

std::vector<int32_t> ConfigReader::Ids(const char* key, int64_t limit) {
  const json* value = Find(key);
  if (value == nullptr) return {};
  if (value->is_array() && value->size() > kMaxIds) {
    Problem(key, fmt::format("lists {} ids; at most {} are supported", value->size(), kMaxIds));
    return {};
  }
  std::vector<int32_t> ids;
  const json list = value->is_array() ? *value : json::array({*value});
  for (const json& item : list) {
    const std::optional<int64_t> id = AsInt(item);
    if (!id || *id < 0 || *id >= limit) {
      Problem(key, fmt::format("{} is no token id in [0, {})", DisplayJson(item), limit));
      return {};
    }
    ids.push_back(static_cast<int32_t>(*id));
  }
  return ids;
}

void ConfigReader::Require(const char* key, const json& value, std::string_view remedy) {
  const json* found = Find(key);
  if (found == nullptr || *found == value) return;
  Problem(key, fmt::format("{} is not supported, only {}; {}", DisplayJson(*found),
                           DisplayJson(value), remedy));
}

}  // namespace hadal
