// Frames of worker.proto: what decodes must encode to bytes that decode to the same. The first byte
// chooses the message.
#include <span>

#include "common/check.h"
#include "proto/step_plan_codec.h"

namespace {

// Compared as bytes: a NaN is not equal to itself.
template <typename Decode, typename Encode>
void RoundTrip(std::span<const uint8_t> bytes, Decode decode, Encode encode) {
  const auto first = decode(bytes);
  if (!first.ok()) return;
  const std::string encoded = encode(*first);
  const auto second =
      decode(std::span(reinterpret_cast<const uint8_t*>(encoded.data()), encoded.size()));
  HADAL_CHECK(second.ok(), "{}", second.status().ToString());
  HADAL_CHECK(encode(*second) == encoded);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const std::span<const uint8_t> bytes(data + 1, size - 1);
  switch (data[0] % 3) {
    case 0:
      RoundTrip(bytes, hadal::DecodeStepPlan, hadal::EncodeStepPlan);
      break;
    case 1:
      RoundTrip(bytes, hadal::DecodeStepResult, hadal::EncodeStepResult);
      break;
    default:
      RoundTrip(bytes, hadal::DecodeGroupResult, hadal::EncodeGroupResult);
      break;
  }
  return 0;
}
