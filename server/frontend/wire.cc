#include "server/frontend/wire.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/unknown_field_set.h>

#include <map>
#include <string>
#include <vector>

#include "common/check.h"
#include "common/utf8.h"

namespace hadal {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::UnknownField;
using google::protobuf::UnknownFieldSet;

std::string Flatten(const grpc::ByteBuffer& bytes) {
  std::vector<grpc::Slice> slices;
  std::string flat;
  if (!bytes.Dump(&slices).ok()) return flat;
  flat.reserve(bytes.Length());
  for (const grpc::Slice& slice : slices) {
    flat.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  }
  return flat;
}

// Path of the first string field that is not UTF-8; empty: none. `bytes` is a message of `type`.
std::string FindInvalidText(const Descriptor& type, const std::string& bytes, int depth) {
  UnknownFieldSet fields;
  if (depth > 32 || !fields.ParseFromString(bytes)) return "";
  std::map<int, int> seen;  // field number -> how many came before
  for (int i = 0; i < fields.field_count(); ++i) {
    const UnknownField& field = fields.field(i);
    const FieldDescriptor* known = type.FindFieldByNumber(field.number());
    if (known == nullptr || field.type() != UnknownField::TYPE_LENGTH_DELIMITED) continue;
    const int index = seen[field.number()]++;
    const std::string name =
        known->is_repeated() ? fmt::format("{}[{}]", known->name(), index) : known->name();
    if (known->type() == FieldDescriptor::TYPE_STRING && !IsValidUtf8(field.length_delimited())) {
      return name;
    }
    if (known->type() != FieldDescriptor::TYPE_MESSAGE) continue;
    const std::string inner =
        FindInvalidText(*known->message_type(), field.length_delimited(), depth + 1);
    if (!inner.empty()) return name + "." + inner;
  }
  return "";
}

}  // namespace

Status ParseMessage(const grpc::ByteBuffer& bytes, google::protobuf::Message* message) {
  const std::string flat = Flatten(bytes);
  if (message->ParseFromString(flat)) return OkStatus();
  const Descriptor& type = *message->GetDescriptor();
  const std::string path = FindInvalidText(type, flat, 0);
  if (!path.empty()) return InvalidArgument("{}: is not valid UTF-8", path);
  return InvalidArgument("the request is not a {} message", type.full_name());
}

grpc::ByteBuffer SerialiseMessage(const google::protobuf::Message& message) {
  grpc::Slice slice(message.ByteSizeLong());
  HADAL_CHECK(message.SerializeToArray(const_cast<uint8_t*>(slice.begin()),
                                       static_cast<int>(slice.size())));
  return grpc::ByteBuffer(&slice, 1);
}

grpc::Status ToGrpc(const Status& status) {
  if (status.ok()) return grpc::Status::OK;
  return {static_cast<grpc::StatusCode>(status.code()), status.message()};
}

}  // namespace hadal
