
#include <algorithm>

#include "common/file.h"
#include "common/model_config.h"
#include "common/safetensors.h"

namespace hadal {
namespace {

// FNV-1a of 128 bits. It tells files apart; it is no protection against someone who wants two to
// look alike.
class Hash {
 public:
  void Bytes(std::string_view bytes) {
    for (const char c : bytes) {
      state_ ^= static_cast<uint8_t>(c);
      state_ *= kPrime;
    }
  }
  void Number(uint64_t number) {
    for (int i = 0; i < 8; ++i) {
      state_ ^= (number >> (8 * i)) & 0xff;
      state_ *= kPrime;
    }
  }
  // With its length, so that no two sequences of fields run together alike.
  void Field(std::string_view bytes) {
    Number(bytes.size());
    Bytes(bytes);
  }
  std::string Hex() const {
    return fmt::format("{:016x}{:016x}", static_cast<uint64_t>(state_ >> 64),
                       static_cast<uint64_t>(state_));
  }

 private:
  using Wide = unsigned __int128;
  static constexpr Wide kPrime = (Wide{1} << 88) | 0x13b;
  Wide state_ = (Wide{0x6c62272e07bb0142} << 64) | 0x62b821756295c58d;
};

// What is read of a tensor.
constexpr size_t kSampleBytes = 64;

// The experts of a model are most of its tensors and would take minutes to sample on a cold disk; models
// that differ in nothing else are not told apart.
bool IsSampled(const TensorInfo& tensor) {
  return tensor.name.find(".experts.") == std::string::npos;
}

// Every tensor's name, dtype, shape and place, and the beginnings of those that are sampled.
Status HashTensors(const SafetensorsFile& file, Hash* hash) {
  hash->Number(file.tensors().size());
  for (const TensorInfo& tensor : file.tensors()) {
    hash->Field(tensor.name);
    hash->Field(tensor.dtype_name);
    hash->Number(tensor.shape.size());
    for (const int64_t size : tensor.shape) hash->Number(static_cast<uint64_t>(size));
    hash->Number(tensor.begin);
    hash->Number(tensor.end);
    if (!IsSampled(tensor)) continue;
    const auto all = file.data(tensor);
    const auto sample = all.first(std::min(all.size(), kSampleBytes));
    HADAL_RETURN_IF_ERROR(file.Prefetch(sample));
    hash->Field({reinterpret_cast<const char*>(sample.data()), sample.size()});
  }
  return OkStatus();
}

}  // namespace

StatusOr<std::string> ModelFingerprint(const std::string& model_dir) {
  Hash hash;
  HADAL_ASSIGN_OR_RETURN(const std::string config,
                         ReadFile(model_dir + "/config.json", kMaxConfigBytes));
  hash.Field(config);
  const auto generation = ReadFile(model_dir + "/generation_config.json", kMaxConfigBytes);
  if (!generation.ok() && generation.status().code() != StatusCode::kNotFound) {
    return generation.status();
  }
  hash.Number(generation.ok() ? 1 : 0);
  hash.Field(generation.ok() ? std::string_view(*generation) : "");
  const auto names = CheckpointFiles(model_dir);
  // A config alone is a model too: one of random weights, for benchmarks.
  if (!names.ok() && names.status().code() != StatusCode::kNotFound) return names.status();
  for (const std::string& name : names.ok() ? *names : std::vector<std::string>()) {
    HADAL_ASSIGN_OR_RETURN(const auto file, SafetensorsFile::Open(model_dir + "/" + name));
    hash.Field(name);
    HADAL_RETURN_IF_ERROR(HashTensors(*file, &hash));
  }
  return hash.Hex();
}

}  // namespace hadal
