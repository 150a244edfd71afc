// The name of a file in a model directory: it is a converted file's exactly when a regular
// expression and the range of its numbers say so.
#include <climits>
#include <cstdint>
#include <regex>
#include <string>

#include "common/check.h"
#include "common/converted_checkpoint.h"

namespace hadal {
namespace {

// 0 for other names.
long RanksByExpression(const std::string& name) {
  // Ten digits hold every int. The expression would recurse for each character of a long name.
  static const std::regex kName("model(0|[1-9][0-9]{0,9})-mp([1-9][0-9]{0,9})\\.safetensors");
  std::smatch match;
  if (name.size() > 100 || !std::regex_match(name, match, kName)) return 0;
  const long rank = std::stol(match[1]);
  const long ranks = std::stol(match[2]);
  return rank < ranks && ranks <= INT_MAX ? ranks : 0;
}

}  // namespace
}  // namespace hadal

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string name(reinterpret_cast<const char*>(data), size);
  HADAL_CHECK(hadal::RanksOfName(name).value_or(0) == hadal::RanksByExpression(name));
  return 0;
}
