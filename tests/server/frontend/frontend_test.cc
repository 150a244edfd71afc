#include <grpcpp/generic/generic_stub.h>

#include <algorithm>
#include <utility>

#include "hadal/v1/tokenizer.grpc.pb.h"
#include "tests/server/frontend/front.h"

namespace hadal {

using testing::Counted;
using testing::Front;
using testing::Generate;
using testing::MakeRequest;
using testing::Read;
using testing::Stream;
using testing::Text;

TEST_CASE("a stream is accepted, has deltas, a reason and a summary; once is its sum") {
  const Front front;
  const auto channel = front.Connect();
  for (const auto& [prompt, count] : {std::pair(5, 40), {600, 3}, {1, 1}, {70, 200}}) {
    CAPTURE(prompt, count);
    const v1::GenerateRequest request = MakeRequest(prompt, count);
    const Stream stream = Generate(channel, request);
    REQUIRE(stream.status.ok());
    REQUIRE(stream.events.size() >= 4);
    CHECK(stream.events.front().accepted().prompt_tokens() == prompt);
    CHECK(stream.events.front().accepted().prompt_token_ids_size() == prompt);
    CHECK(stream.events.rbegin()[1].finished().reason() == v1::FINISH_REASON_LENGTH);
    CHECK_FALSE(stream.events.rbegin()[1].finished().has_stop());
    const v1::Summary& summary = stream.events.back().summary();
    CHECK(summary.usage().prompt_tokens() == prompt);
    CHECK(summary.usage().completion_tokens() == count);
    for (size_t i = 1; i + 2 < stream.events.size(); ++i) CHECK(stream.events[i].has_delta());
    CHECK(stream.tokens == Counted(prompt, count));
    CHECK(stream.text == Text(stream.tokens));

    grpc::ClientContext context;
    v1::Completion once;
    REQUIRE(v1::GenerateService::NewStub(channel)->GenerateOnce(&context, request, &once).ok());
    CHECK(std::equal(stream.tokens.begin(), stream.tokens.end(), once.output().token_ids().begin(),
                     once.output().token_ids().end()));
    CHECK(once.output().text() == stream.text);
    CHECK(once.finished().reason() == v1::FINISH_REASON_LENGTH);
  }
  CHECK(front.AwaitIdle());
}

TEST_CASE("a client that does not read loses its stream, and no other does") {
  const Front front;
  v1::GenerateRequest request = MakeRequest(10, 100'000);
  request.mutable_output()->set_logprobs(20);
  grpc::ClientContext context;
  const auto stub = v1::GenerateService::NewStub(front.Connect());
  const auto slow = stub->Generate(&context, request);
  // Its blocks are free although it has not read a word.
  REQUIRE(front.Await([](const EngineStats& s) { return s.generated_tokens > 0; }));
  REQUIRE(front.AwaitIdle());
  const Stream other = Generate(front.Connect(), MakeRequest(10, 2000));
  CHECK(other.status.ok());
  CHECK(other.tokens == Counted(10, 2000));
  const Stream stream = Read(slow.get());
  CHECK(stream.status.error_code() == grpc::RESOURCE_EXHAUSTED);
  CHECK(stream.status.error_message().find("does not read") != std::string::npos);
  CHECK(stream.tokens.size() < 100'000);
  CHECK(stream.tokens == Counted(10, static_cast<int>(stream.tokens.size())));
}

TEST_CASE("a client that reads late but in time gets everything") {
  const Front front;
  grpc::ClientContext context;
  const auto stub = v1::GenerateService::NewStub(front.Connect());
  const auto reader = stub->Generate(&context, MakeRequest(10, 50'000));  // fits the buffer
  REQUIRE(front.Await([](const EngineStats& s) { return s.generated_tokens >= 50'000; }));
  CHECK(front.AwaitIdle());
  CHECK(front.intake.open_calls() == 1);
  const Stream stream = Read(reader.get());
  CHECK(stream.status.ok());
  CHECK(stream.tokens == Counted(10, 50'000));
  CHECK(front.Await([&](const EngineStats&) { return front.intake.open_calls() == 0; }));
}

TEST_CASE("a cancelled call frees its blocks") {
  const Front front;
  for (int i = 0; i < 20; ++i) {
    grpc::ClientContext context;
    const auto stub = v1::GenerateService::NewStub(front.Connect());
    const auto reader = stub->Generate(&context, MakeRequest(100, 200'000));
    v1::Event event;
    for (int reads = 0; reads < i; ++reads) REQUIRE(reader->Read(&event));
    context.TryCancel();
    CHECK(Read(reader.get()).status.error_code() == grpc::CANCELLED);
    CHECK(front.AwaitIdle());
  }
}

TEST_CASE("without workers requests wait up to their deadlines, in a bounded queue") {
  const Front front(/*with_workers=*/false, {.max_waiting_requests = 2});
  const auto channel = front.Connect();
  const auto stub = v1::GenerateService::NewStub(channel);
  grpc::ClientContext contexts[2];
  std::vector<std::unique_ptr<grpc::ClientReader<v1::Event>>> waiting;
  for (grpc::ClientContext& context : contexts) {
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(1));
    waiting.push_back(stub->Generate(&context, MakeRequest(3, 3)));
  }
  REQUIRE(front.Await([](const EngineStats& s) { return s.waiting == 2; }));
  CHECK(Generate(channel, MakeRequest(3, 3)).status.error_code() == grpc::RESOURCE_EXHAUSTED);
  for (const auto& reader : waiting) {
    CHECK(Read(reader.get()).status.error_code() == grpc::DEADLINE_EXCEEDED);
  }
  CHECK(front.Await([](const EngineStats& s) { return s.waiting == 0; }));
}

TEST_CASE("stop strings end the text before them, also across tokens") {
  const Front front;
  v1::GenerateRequest request = MakeRequest(40, 50);  // "()*+,-./0123..." from position 40 on
  request.mutable_sampling()->add_stop("/01");
  const Stream stream = Generate(front.Connect(), request);
  REQUIRE(stream.status.ok());
  CHECK(stream.text == "()*+,-.");
  CHECK(stream.events.rbegin()[1].finished().stop() == "/01");
  CHECK_FALSE(stream.events.rbegin()[1].finished().has_stop_token_id());
  CHECK(stream.events.rbegin()[1].finished().reason() == v1::FINISH_REASON_STOP);
  CHECK(front.AwaitIdle());
}

TEST_CASE("bytes that are no UTF-8 are refused with the field's name") {
  const Front front;
  v1::GenerateRequest request;
  request.set_text("x");
  std::string bytes = request.SerializeAsString();
  bytes.back() = '\xff';
  const grpc::Slice slice(bytes);
  grpc::ByteBuffer answer;
  grpc::Status status;
  grpc::ClientContext context;
  grpc::CompletionQueue queue;
  grpc::GenericStub stub(front.Connect());
  const auto call = stub.PrepareUnaryCall(&context, "/hadal.v1.GenerateService/GenerateOnce",
                                          grpc::ByteBuffer(&slice, 1), &queue);
  call->StartCall();
  call->Finish(&answer, &status, nullptr);
  void* tag = nullptr;
  bool ok = false;
  REQUIRE(queue.Next(&tag, &ok));
  CHECK(status.error_code() == grpc::INVALID_ARGUMENT);
  CHECK(status.error_message().find("text") != std::string::npos);
}

TEST_CASE("the tokenizer is served") {
  const Front front;
  const auto stub = v1::TokenizerService::NewStub(front.Connect());
  grpc::ClientContext encode_context, decode_context;
  v1::EncodeRequest encode;
  encode.set_text("h\xC3\xA9 <|im_end|>");
  v1::EncodeResponse ids;
  REQUIRE(stub->Encode(&encode_context, encode, &ids).ok());
  v1::DecodeRequest decode;
  *decode.mutable_token_ids() = ids.token_ids();
  for (const int32_t id : ids.token_ids()) CHECK(id < 256);  // the user's control token is text
  v1::DecodeResponse text;
  REQUIRE(stub->Decode(&decode_context, decode, &text).ok());
  CHECK(text.text() == encode.text());
}

}  // namespace hadal
