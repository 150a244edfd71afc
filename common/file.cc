#include "common/file.h"

#include <sys/stat.h>

#include <fstream>
#include <set>
#include <vector>

#include "common/utf8.h"

namespace hadal {
namespace {

constexpr int kMaxDepth = 64;

// Nesting is bounded before the parser builds anything, so that hostile input costs nothing.
bool TooDeep(std::string_view text) {
  int depth = 0;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string) {
      if (c == '\\') ++i;
      if (c == '"') in_string = false;
    } else if (c == '"') {
      in_string = true;
    } else if (c == '{' || c == '[') {
      if (++depth > kMaxDepth) return true;
    } else if (c == '}' || c == ']') {
      --depth;
    }
  }
  return false;
}

}  // namespace

StatusOr<std::string> ReadFile(const std::string& path, uint64_t max_bytes) {
  struct stat info {};
  if (stat(path.c_str(), &info) != 0) return NotFound("{}: no such file", path);
  if (!S_ISREG(info.st_mode)) return InvalidArgument("{}: not a regular file", path);
  const auto size = static_cast<uint64_t>(info.st_size);
  if (size > max_bytes) {
    return InvalidArgument("{}: holds {} bytes; at most {} are read", path, size, max_bytes);
  }
  std::ifstream in(path, std::ios::binary);
  if (!in) return InvalidArgument("{}: cannot be opened; check its permissions", path);
  std::string content(size, '\0');
  in.read(content.data(), static_cast<std::streamsize>(size));
  if (static_cast<uint64_t>(in.gcount()) != size) {
    return InvalidArgument("{}: only {} of {} bytes could be read", path, in.gcount(), size);
  }
  return content;
}

StatusOr<std::string> ReadSecret(const std::string& path) {
  if (path.empty()) return std::string();
  std::ifstream in(path);
  std::string secret;
  std::getline(in, secret);
  secret.erase(secret.find_last_not_of(" \t\r") + 1);
  if (secret.empty()) {
    return InvalidArgument("--join-secret-file {} cannot be read or is empty", path);
  }
  return secret;
}

StatusOr<nlohmann::json> ParseJson(std::string_view text, std::string_view name) {
  if (TooDeep(text)) {
    return InvalidArgument("{}: nested more than {} levels deep", name, kMaxDepth);
  }
  if (text.find('\0') != std::string_view::npos) {  // the parser would stop there
    return InvalidArgument("{}: holds a zero byte", name);
  }
  using nlohmann::json;
  std::vector<std::set<std::string>> keys;  // of the objects that are open, by depth
  std::string duplicate;
  const auto callback = [&](int depth, json::parse_event_t event, json& value) {
    if (event == json::parse_event_t::object_start) {
      keys.resize(static_cast<size_t>(depth) + 1);
      keys.back().clear();
    } else if (event == json::parse_event_t::key && duplicate.empty()) {
      const auto& key = value.get_ref<const std::string&>();
      if (!keys[static_cast<size_t>(depth) - 1].insert(key).second) duplicate = key;
    }
    return true;
  };
  try {
    json parsed = json::parse(text, callback);
    if (!duplicate.empty()) {
      return InvalidArgument("{}: the key \"{}\" stands twice in one object", name,
                             DisplayText(duplicate, 80));
    }
    return parsed;
  } catch (const json::exception& error) {
    return InvalidArgument("{}: not valid JSON: {}", name, DisplayText(error.what(), 200));
  }
}

StatusOr<nlohmann::json> ReadJsonFile(const std::string& path, uint64_t max_bytes) {
  HADAL_ASSIGN_OR_RETURN(const std::string text, ReadFile(path, max_bytes));
  return ParseJson(text, path);
}

}  // namespace hadal
