// Speaks the published protocols that every gRPC tool knows, grpc.health.v1 and server reflection,
// by their field numbers: nothing here comes from the server's sources.
//
//   hadal-service-probe check ADDRESS [SERVICE]  prints the health that Check answers
//   hadal-service-probe watch ADDRESS            prints every health that Watch tells, until it
//   ends hadal-service-probe methods ADDRESS          prints SERVICE/METHOD of all services that
//   are listed hadal-service-probe late ADDRESS METHOD HEX  calls with a request of these bytes,
//   reads the answers
//                                                when stdin ends, and prints how many there are
//
// A call that fails is printed on stderr with its status, and the exit code is 1.

#include <google/protobuf/descriptor.pb.h>
#include <google/protobuf/unknown_field_set.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>

#include <cstdio>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace {

using google::protobuf::UnknownFieldSet;

constexpr const char* kCheck = "/grpc.health.v1.Health/Check";
constexpr const char* kWatch = "/grpc.health.v1.Health/Watch";
constexpr const char* kReflection =
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo";

// Fields of grpc.reflection.v1alpha's ServerReflectionRequest and of its response.
constexpr int kFileContainingSymbol = 4;
constexpr int kFileDescriptorResponse = 4;
constexpr int kListServices = 7;
constexpr int kListServicesResponse = 6;

// A message whose only field is a string.
grpc::ByteBuffer OneString(int field, const std::string& value) {
  UnknownFieldSet message;
  if (!value.empty()) message.AddLengthDelimited(field)->assign(value);
  std::string bytes;
  message.SerializeToString(&bytes);
  const grpc::Slice slice(bytes);
  return grpc::ByteBuffer(&slice, 1);
}

std::string Flatten(const grpc::ByteBuffer& buffer) {
  grpc::Slice slice;
  if (!buffer.DumpToSingleSlice(&slice).ok()) return "";
  return {reinterpret_cast<const char*>(slice.begin()), slice.size()};
}

// Every value of a field of strings, bytes or messages.
std::vector<std::string> Strings(const std::string& message, int number) {
  UnknownFieldSet fields;
  std::vector<std::string> values;
  if (!fields.ParseFromString(message)) return values;
  for (int i = 0; i < fields.field_count(); ++i) {
    const auto& field = fields.field(i);
    const bool bytes = field.type() == google::protobuf::UnknownField::TYPE_LENGTH_DELIMITED;
    if (bytes && field.number() == number) values.push_back(field.length_delimited());
  }
  return values;
}

std::string HealthName(const std::string& response) {
  UnknownFieldSet fields;
  if (!fields.ParseFromString(response)) return "no HealthCheckResponse";
  uint64_t status = 0;  // what is zero is not sent
  for (int i = 0; i < fields.field_count(); ++i) {
    if (fields.field(i).number() == 1) status = fields.field(i).varint();
  }
  constexpr const char* kNames[] = {"UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN"};
  return status < std::size(kNames) ? kNames[status] : std::to_string(status);
}

// One request, and every response until the server ends the call.
grpc::Status Call(
    const std::shared_ptr<grpc::Channel>& channel, const char* method,
    const grpc::ByteBuffer& request, const std::function<void(const std::string&)>& on_response,
    const std::function<void()>& before_reading = [] {}) {
  grpc::ClientContext context;
  grpc::CompletionQueue queue;
  grpc::GenericStub stub(channel);
  const auto call = stub.PrepareCall(&context, method, &queue);
  const auto done = [&] {
    void* tag = nullptr;
    bool ok = false;
    return queue.Next(&tag, &ok) && ok;
  };
  grpc::ByteBuffer response;
  call->StartCall(nullptr);
  if (done()) {
    call->WriteLast(request, {}, nullptr);
    done();
  }
  before_reading();
  for (call->Read(&response, nullptr); done(); call->Read(&response, nullptr)) {
    on_response(Flatten(response));
  }
  grpc::Status status;
  call->Finish(&status, nullptr);
  done();
  return status;
}

void PrintMethods(const std::string& service, const std::string& response) {
  for (const std::string& files : Strings(response, kFileDescriptorResponse)) {
    for (const std::string& bytes : Strings(files, 1)) {
      google::protobuf::FileDescriptorProto file;
      if (!file.ParseFromString(bytes)) continue;
      for (const auto& found : file.service()) {
        if (file.package() + "." + found.name() != service) continue;
        for (const auto& method : found.method()) {
          std::printf("%s/%s\n", service.c_str(), method.name().c_str());
        }
      }
    }
  }
}

grpc::Status Methods(const std::shared_ptr<grpc::Channel>& channel) {
  std::vector<std::string> names;
  const grpc::Status listed =
      Call(channel, kReflection, OneString(kListServices, "*"), [&](const std::string& response) {
        for (const std::string& list : Strings(response, kListServicesResponse)) {
          for (const std::string& service : Strings(list, 1)) {
            for (const std::string& name : Strings(service, 1)) names.push_back(name);
          }
        }
      });
  if (!listed.ok()) return listed;
  for (const std::string& name : names) {
    const grpc::Status status =
        Call(channel, kReflection, OneString(kFileContainingSymbol, name),
             [&](const std::string& response) { PrintMethods(name, response); });
    if (!status.ok()) return status;
  }
  return grpc::Status::OK;
}

// As little as possible is on its way while nothing is read.
grpc::Status ReadLate(const std::string& address, const char* method, std::string_view hex) {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);
  const auto channel =
      grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments);
  std::string bytes;
  for (; hex.size() >= 2; hex.remove_prefix(2)) {
    bytes += static_cast<char>(std::stoi(std::string(hex.substr(0, 2)), nullptr, 16));
  }
  const grpc::Slice slice(bytes);
  int answers = 0;
  const grpc::Status status = Call(
      channel, method, grpc::ByteBuffer(&slice, 1), [&](const std::string&) { ++answers; },
      [] {
        while (std::getchar() != EOF) {
        }
      });
  std::printf("%d\n", answers);
  return status;
}

void PrintHealth(const std::string& response) {
  std::printf("%s\n", HealthName(response).c_str());
  std::fflush(stdout);
}

}  // namespace

int main(int argc, char** argv) {
  const std::string_view command = argc >= 3 ? argv[1] : "";
  const auto channel =
      command.empty() ? nullptr : grpc::CreateChannel(argv[2], grpc::InsecureChannelCredentials());
  grpc::Status status;
  if (command == "check") {
    status = Call(channel, kCheck, OneString(1, argc > 3 ? argv[3] : ""), PrintHealth);
  } else if (command == "watch") {
    status = Call(channel, kWatch, OneString(1, ""), PrintHealth);
  } else if (command == "methods") {
    status = Methods(channel);
  } else if (command == "late" && argc == 5) {
    status = ReadLate(argv[2], argv[3], argv[4]);
  } else {
    std::fprintf(stderr, "usage: %s check|watch|methods|late ADDRESS ...\n", argv[0]);
    return 2;
  }
  if (status.ok()) return 0;
  std::fprintf(stderr, "status %d: %s\n", status.error_code(), status.error_message().c_str());
  return 1;
}
