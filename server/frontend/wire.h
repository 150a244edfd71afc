#pragma once

#include <google/protobuf/message.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/status.h>

#include "common/status.h"

namespace hadal {

// Requests are parsed here and not by gRPC, which answers bytes that do not parse with UNIMPLEMENTED
// and no word. INVALID_ARGUMENT names the string field that is not UTF-8, as messages[1].content.
Status ParseMessage(const grpc::ByteBuffer& bytes, google::protobuf::Message* message);

grpc::ByteBuffer SerialiseMessage(const google::protobuf::Message& message);

grpc::Status ToGrpc(const Status& status);

}  // namespace hadal
