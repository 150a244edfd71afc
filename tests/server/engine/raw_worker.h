#pragma once

#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>

#include <memory>
#include <optional>
#include <string>

#include "hadal/v1/worker.pb.h"
#include "proto/worker_protocol.h"

namespace hadal::testing {

// One that kWorkerServerOptions accept.
inline v1::WorkerMessage MakeHello() {
  v1::WorkerMessage message;
  v1::Hello* hello = message.mutable_hello();
  hello->set_protocol_version(kWorkerProtocolVersion);
  hello->set_fingerprint("model-1");
  hello->set_tensor_parallel(2);
  hello->set_data_parallel(3);
  hello->set_kv_blocks(40);
  hello->set_max_slots(5);
  hello->set_max_step_tokens(600);
  hello->set_join_secret("open sesame");
  hello->set_host("host-a");
  return message;
}

// A worker's end of a Join stream that sends whatever bytes it is told to. Every call waits.
class RawWorker {
 public:
  explicit RawWorker(const std::string& address,
                     grpc_compression_algorithm compression = GRPC_COMPRESS_NONE)
      : stub_(grpc::CreateChannel(address, grpc::InsecureChannelCredentials())) {
    context_.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(20));
    context_.set_compression_algorithm(compression);
    call_ = stub_.PrepareCall(&context_, "/hadal.v1.WorkerService/Join", &queue_);
    call_->StartCall(nullptr);
    Wait();
  }
  ~RawWorker() {
    context_.TryCancel();
    if (!finished_) Finish();
    queue_.Shutdown();
    while (Wait()) {
    }
  }

  bool Write(const std::string& bytes) {
    const grpc::Slice slice(bytes);
    call_->Write(grpc::ByteBuffer(&slice, 1), nullptr);
    return Wait();
  }
  bool Write(const v1::WorkerMessage& message) { return Write(message.SerializeAsString()); }

  // The next message; nothing when the stream is over.
  std::optional<v1::ServerMessage> Read() {
    grpc::ByteBuffer buffer;
    call_->Read(&buffer, nullptr);
    if (!Wait()) return std::nullopt;
    grpc::Slice slice;
    v1::ServerMessage message;
    if (!buffer.DumpToSingleSlice(&slice).ok() ||
        !message.ParseFromArray(slice.begin(), static_cast<int>(slice.size()))) {
      return std::nullopt;
    }
    return message;
  }

  void HalfClose() {
    call_->WritesDone(nullptr);
    Wait();
  }
  void Cancel() { context_.TryCancel(); }

  // The status with which the server ended the stream.
  grpc::Status Finish() {
    finished_ = true;
    grpc::Status status;
    call_->Finish(&status, nullptr);
    Wait();
    return status;
  }

 private:
  bool Wait() {
    void* tag = nullptr;
    bool ok = false;
    return queue_.Next(&tag, &ok) && ok;
  }

  grpc::CompletionQueue queue_;
  grpc::GenericStub stub_;
  grpc::ClientContext context_;
  std::unique_ptr<grpc::GenericClientAsyncReaderWriter> call_;
  bool finished_ = false;
};

}  // namespace hadal::testing
