#include <algorithm>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "common/safetensors.h"
#include "common/utf8.h"

namespace hadal {
namespace {
using nlohmann::json;

// Bits of one element of every type the format knows.
const std::map<std::string_view, int>& BitsByName() {
  static const std::map<std::string_view, int> kBits = {
      {"BOOL", 8},    {"U8", 8},          {"I8", 8},          {"F8_E4M3", 8}, {"F8_E5M2", 8},
      {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8}, {"F8_E5M2FNUZ", 8}, {"I16", 16},    {"U16", 16},
      {"F16", 16},    {"BF16", 16},       {"I32", 32},        {"U32", 32},    {"F32", 32},
      {"I64", 64},    {"U64", 64},        {"F64", 64},        {"C64", 64},    {"F4", 4},
      {"F6_E2M3", 6}, {"F6_E3M2", 6}};
  return kBits;
}

std::optional<DType> KnownDType(std::string_view name) {
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF8E4M3}) {
    if (name == DTypeName(dtype)) return dtype;
  }
  return std::nullopt;
}

// Takes the header apart as the parser walks over it: no document is built, and anything the format
// does not have (deeper nesting, other types, keys twice) ends the walk at once.
// Levels: 1 the header, 2 one tensor or __metadata__, 3 a shape or offsets.
class HeaderHandler : public nlohmann::json_sax<json> {
 public:
  std::vector<TensorInfo> tensors;
  std::string error;

  bool null() override { return Unexpected("null"); }
  bool boolean(bool) override { return Unexpected("a boolean"); }
  bool number_float(number_float_t, const string_t&) override { return Unexpected("a fraction"); }
  bool binary(binary_t&) override { return Unexpected("bytes"); }
  bool number_integer(number_integer_t) override { return Unexpected("a negative number"); }

  bool number_unsigned(number_unsigned_t value) override {
    if (level_ != 3 || value > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
      return Unexpected(fmt::format("the number {}", value));
    }
    numbers_.push_back(static_cast<int64_t>(value));
    return true;
  }

  bool string(string_t& value) override {
    if (level_ != 2) return Unexpected("a string");
    if (in_metadata_) return true;
    if (field_ != "dtype") return Unexpected("a string");
    if (BitsByName().count(value) == 0) {
      return Fail(fmt::format("unknown dtype \"{}\"", DisplayText(value, 40)));
    }
    tensors.back().dtype_name = value;
    tensors.back().dtype = KnownDType(value);
    return true;
  }

  bool start_object(size_t) override {
    if (level_ >= 2) return Unexpected("an object");
    if (++level_ == 1) return true;
    keys_.clear();
    field_.clear();
    return true;
  }

  bool key(string_t& name) override {
    if (level_ == 1) return StartEntry(name);
    if (!keys_.insert(name).second) {
      return Fail(fmt::format("the key \"{}\" stands twice", DisplayText(name, 80)));
    }
    field_ = name;
    if (in_metadata_ || name == "dtype" || name == "shape" || name == "data_offsets") return true;
    return Fail(fmt::format("unknown field \"{}\"", DisplayText(name, 80)));
  }

  bool end_object() override {
    if (level_-- == 1 || in_metadata_) return true;
    if (keys_.size() != 3) return Fail("needs dtype, shape and data_offsets");
    return true;
  }

  bool start_array(size_t) override {
    if (level_ != 2 || in_metadata_ || (field_ != "shape" && field_ != "data_offsets")) {
      return Unexpected("a list");
    }
    ++level_;
    numbers_.clear();
    return true;
  }

  bool end_array() override {
    --level_;
    TensorInfo& tensor = tensors.back();
    if (field_ == "shape") {
      tensor.shape = numbers_;
      return true;
    }
    if (numbers_.size() != 2) return Fail("data_offsets must be two numbers");
    tensor.begin = static_cast<uint64_t>(numbers_[0]);
    tensor.end = static_cast<uint64_t>(numbers_[1]);
    return true;
  }

  bool parse_error(size_t position, const std::string&, const json::exception&) override {
    error = fmt::format("not valid JSON in UTF-8 at byte {} of the header", position);
    return false;
  }

 private:
  bool StartEntry(const std::string& name) {
    in_metadata_ = name == "__metadata__";
    if (in_metadata_) {
      if (std::exchange(has_metadata_, true)) return Fail("__metadata__ stands twice");
      return true;
    }
    tensors.push_back({.name = name});
    return true;
  }
  bool Unexpected(std::string_view what) {
    if (level_ == 0) return Fail(fmt::format("the header is {}, not an object", what));
    if (!field_.empty() && level_ > 1) {
      return Fail(fmt::format("{} is not allowed in \"{}\"", what, DisplayText(field_, 80)));
    }
    return Fail(fmt::format("{} is not allowed here", what));
  }
  bool Fail(std::string_view what) {
    const bool inside = level_ > 0 && (in_metadata_ || !tensors.empty());
    const std::string entry = in_metadata_ ? "__metadata__" : inside ? tensors.back().name : "";
    error = inside ? fmt::format("tensor \"{}\": {}", DisplayText(entry, 200), what)
                   : std::string(what);
    return false;
  }

  int level_ = 0;
  bool in_metadata_ = false;
  bool has_metadata_ = false;
  std::string field_;           // of the entry that is open
  std::set<std::string> keys_;  // of the entry that is open
  std::vector<int64_t> numbers_;
};

Status CheckTensor(const TensorInfo& tensor, uint64_t data_bytes) {
  const std::string name = DisplayText(tensor.name, 200);
  if (tensor.begin > tensor.end) {
    return InvalidArgument("tensor \"{}\": data_offsets [{}, {}] run backwards", name, tensor.begin,
                           tensor.end);
  }
  if (tensor.end > data_bytes) {
    return InvalidArgument(
        "tensor \"{}\" ends at byte {} of the data, but the file holds {}; it "
        "may be truncated, copy or download it again",
        name, tensor.end, data_bytes);
  }
  const std::optional<uint64_t> bytes = TensorBytes(tensor);
  if (!bytes || *bytes != tensor.end - tensor.begin) {
    return InvalidArgument("tensor \"{}\": shape [{}] of {} does not fill its {} bytes", name,
                           fmt::join(tensor.shape, ", "), tensor.dtype_name,
                           tensor.end - tensor.begin);
  }
  return OkStatus();
}

// The data section is covered once, without overlap, hole or rest.
Status CheckCoverage(const std::vector<TensorInfo>& tensors, uint64_t data_bytes) {
  std::vector<const TensorInfo*> order;
  order.reserve(tensors.size());
  for (const TensorInfo& tensor : tensors) order.push_back(&tensor);
  std::sort(order.begin(), order.end(), [](const TensorInfo* a, const TensorInfo* b) {
    return std::pair(a->begin, a->end) < std::pair(b->begin, b->end);
  });
  uint64_t at = 0;
  for (const TensorInfo* tensor : order) {
    if (tensor->begin != at) {
      return InvalidArgument(
          "tensor \"{}\" begins at byte {}, but the bytes before it end at {}: {}",
          DisplayText(tensor->name, 200), tensor->begin, at,
          tensor->begin < at ? "tensors overlap" : "a hole");
    }
    at = tensor->end;
  }
  if (at == data_bytes) return OkStatus();
  return InvalidArgument("{} bytes after the last tensor belong to none", data_bytes - at);
}

Status CheckDuplicates(const std::vector<TensorInfo>& tensors) {
  std::set<std::string_view> names;
  for (const TensorInfo& tensor : tensors) {
    if (!names.insert(tensor.name).second) {
      return InvalidArgument("tensor \"{}\" stands twice in the header",
                             DisplayText(tensor.name, 200));
    }
  }
  return OkStatus();
}

}  // namespace

int ElementBits(std::string_view dtype_name) { return BitsByName().at(dtype_name); }

std::optional<uint64_t> TensorBytes(const TensorInfo& tensor) {
  uint64_t bits = static_cast<uint64_t>(ElementBits(tensor.dtype_name));
  for (const int64_t size : tensor.shape) {
    if (__builtin_mul_overflow(bits, static_cast<uint64_t>(size), &bits)) return std::nullopt;
  }
  if (bits % 8 != 0) return std::nullopt;
  return bits / 8;
}

StatusOr<std::vector<TensorInfo>> ParseSafetensorsHeader(std::string_view header,
                                                         uint64_t data_bytes) {
  if (header.empty() || header[0] != '{') {
    return InvalidArgument("the header does not begin with '{{'; this is no safetensors file");
  }
  if (header.find('\0') != std::string_view::npos) {  // the JSON parser would stop there
    return InvalidArgument("the header holds a zero byte; this is no safetensors file");
  }
  HeaderHandler handler;
  if (!json::sax_parse(header.begin(), header.end(), &handler)) {
    return InvalidArgument("{}", handler.error);
  }
  HADAL_RETURN_IF_ERROR(CheckDuplicates(handler.tensors));
  for (const TensorInfo& tensor : handler.tensors) {
    HADAL_RETURN_IF_ERROR(CheckTensor(tensor, data_bytes));
  }
  HADAL_RETURN_IF_ERROR(CheckCoverage(handler.tensors, data_bytes));
  return std::move(handler.tensors);
}

}  // namespace hadal
