// What clients may do to the server that other clients must not feel.

#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <future>
#include <string>

#include "hadal/v1/tokenizer.grpc.pb.h"
#include "tests/server/frontend/front.h"

namespace hadal {
namespace {

using testing::Front;
using testing::MakeRequest;

// Tells what is encoded, and holds its thread at the text "gate" while that is shut.
class GatedTokenizer final : public Tokenizer {
 public:
  explicit GatedTokenizer(std::unique_ptr<Tokenizer> inner) : inner_(std::move(inner)) {}

  std::vector<int32_t> EncodeText(std::string_view text) const override {
    ++encoded;
    if (text == "gate") shut.wait(true);
    return inner_->EncodeText(text);
  }
  std::vector<int32_t> EncodeWithControl(std::string_view text) const override {
    return inner_->EncodeWithControl(text);
  }
  std::string_view TokenBytes(int32_t id) const override { return inner_->TokenBytes(id); }
  bool IsSpecial(int32_t id) const override { return inner_->IsSpecial(id); }
  std::string Decode(std::span<const int32_t> ids, bool skip) const override {
    return inner_->Decode(ids, skip);
  }
  std::optional<int32_t> ControlId(std::string_view content) const override {
    return inner_->ControlId(content);
  }
  int32_t id_limit() const override { return inner_->id_limit(); }
  std::optional<int32_t> bos_id() const override { return inner_->bos_id(); }
  bool add_bos() const override { return inner_->add_bos(); }
  const std::string& chat_template() const override { return inner_->chat_template(); }

  void Open() {
    shut = false;
    shut.notify_all();
  }

  mutable std::atomic<int> encoded = 0;
  std::atomic<bool> shut = true;

 private:
  const std::unique_ptr<Tokenizer> inner_;
};

// The gate stands in front of the model's own tokenizer.
std::unique_ptr<ServedModel> MakeGatedModel(GatedTokenizer** gate) {
  auto model = testing::MakeServedModel();
  auto gated = std::make_unique<GatedTokenizer>(std::move(model->tokenizer));
  *gate = gated.get();
  model->tokenizer = std::move(gated);
  return model;
}

grpc::Status Count(const std::shared_ptr<grpc::Channel>& channel, const std::string& text,
                   std::chrono::milliseconds timeout = testing::kPatience) {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + timeout);
  v1::CountRequest request;
  request.set_text(text);
  v1::CountResponse response;
  return v1::TokenizerService::NewStub(channel)->Count(&context, request, &response);
}

grpc::Status GenerateOnce(const std::shared_ptr<grpc::Channel>& channel,
                          std::chrono::milliseconds timeout) {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + timeout);
  v1::GenerateRequest request = MakeRequest(0, 1);
  request.set_text("abandoned");
  v1::Completion completion;
  return v1::GenerateService::NewStub(channel)->GenerateOnce(&context, request, &completion);
}

// Holds the intake's thread until Open.
std::future<grpc::Status> StandInTheWay(const std::shared_ptr<grpc::Channel>& channel,
                                        GatedTokenizer* gate) {
  gate->shut = true;
  const int before = gate->encoded;
  auto standing = std::async(std::launch::async, [channel] { return Count(channel, "gate"); });
  while (gate->encoded == before) std::this_thread::yield();
  return standing;
}

// A GenerateOnce over a plain socket, whose grpc-timeout may be what no gRPC client would send.
class RawCall {
 public:
  RawCall(int port, const std::string& timeout) : socket_(socket(AF_INET, SOCK_STREAM, 0)) {
    sockaddr_in address{.sin_family = AF_INET, .sin_port = htons(static_cast<uint16_t>(port))};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    REQUIRE(connect(socket_, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0);
    std::string headers;
    const std::pair<std::string, std::string> fields[] = {
        {":method", "POST"},
        {":scheme", "http"},
        {":path", "/hadal.v1.GenerateService/GenerateOnce"},
        {":authority", "localhost"},
        {"te", "trailers"},
        {"content-type", "application/grpc"},
        {"grpc-timeout", timeout}};
    for (const auto& [name, value] : fields) {
      headers += '\0';  // a literal, not to be indexed
      headers += static_cast<char>(name.size()) + name;
      headers += static_cast<char>(value.size()) + value;
    }
    const std::string message = MakeRequest(3, 3).SerializeAsString();
    REQUIRE(message.size() < 128);
    const std::string prefix{0, 0, 0, 0, static_cast<char>(message.size())};
    constexpr char kSettings = 4, kHeaders = 1, kData = 0, kEndHeaders = 4, kEndStream = 1;
    const std::string bytes = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + Frame(kSettings, 0, 0, "") +
                              Frame(kHeaders, kEndHeaders, 1, headers) +
                              Frame(kData, kEndStream, 1, prefix + message);
    REQUIRE(write(socket_, bytes.data(), bytes.size()) == std::ssize(bytes));
  }
  ~RawCall() { close(socket_); }

 private:
  static std::string Frame(char type, char flags, char stream, const std::string& content) {
    const auto size = static_cast<int>(content.size());
    return std::string{
               0,     static_cast<char>(size >> 8), static_cast<char>(size), type, flags, 0, 0, 0,
               stream} +
           content;
  }

  const int socket_;
};

}  // namespace

TEST_CASE("compressed messages are refused before they are inflated") {
  const Front front;
  const auto stub = v1::TokenizerService::NewStub(front.Connect());
  v1::CountRequest request;
  request.set_text(std::string(100'000, ' '));
  for (const auto algorithm : {GRPC_COMPRESS_GZIP, GRPC_COMPRESS_DEFLATE, GRPC_COMPRESS_NONE}) {
    CAPTURE(algorithm);
    grpc::ClientContext context;
    context.set_compression_algorithm(algorithm);
    v1::CountResponse response;
    const grpc::Status status = stub->Count(&context, request, &response);
    CAPTURE(status.error_message());
    CHECK(status.error_code() ==
          (algorithm == GRPC_COMPRESS_NONE ? grpc::OK : grpc::UNIMPLEMENTED));
    CHECK(response.tokens() == (algorithm == GRPC_COMPRESS_NONE ? 100'000 : 0));
  }
}

TEST_CASE("what a client no longer waits for is neither parsed nor encoded") {
  GatedTokenizer* gate = nullptr;
  const Front front(/*with_workers=*/true, {}, {}, MakeGatedModel(&gate));
  const auto channel = front.Connect();
  // The server learns of a deadline a moment later than the client.
  bool spared = false;
  for (auto moment = std::chrono::milliseconds(50); !spared && moment < std::chrono::seconds(5);
       moment *= 2) {
    auto standing = StandInTheWay(channel, gate);
    const int before = gate->encoded;
    CHECK(Count(channel, "abandoned", std::chrono::milliseconds(20)).error_code() ==
          grpc::DEADLINE_EXCEEDED);
    CHECK(GenerateOnce(channel, std::chrono::milliseconds(20)).error_code() ==
          grpc::DEADLINE_EXCEEDED);
    std::this_thread::sleep_for(moment);
    gate->Open();
    CHECK(standing.get().ok());
    CHECK(Count(channel, "last").ok());  // behind the two in the queue
    spared = gate->encoded == before + 1;
  }
  CHECK(spared);
}

TEST_CASE("requests that wait to be read are bounded in bytes") {
  GatedTokenizer* gate = nullptr;
  const Front front(/*with_workers=*/false, {}, {.queued_bytes = 10'000}, MakeGatedModel(&gate));
  const auto channel = front.Connect();
  CHECK(Count(channel, std::string(11'000, 'a')).error_code() == grpc::RESOURCE_EXHAUSTED);
  // What has been read, or refused, counts no more.
  for (int i = 0; i < 10; ++i) CHECK(Count(channel, std::string(9'000, 'a')).ok());
  auto standing = StandInTheWay(channel, gate);
  std::vector<std::future<grpc::Status>> waiting;
  for (int i = 0; i < 5; ++i) {
    waiting.push_back(std::async(std::launch::async,
                                 [&channel] { return Count(channel, std::string(4'000, 'a')); }));
  }
  // Two of the five find room: the other three are answered while the thread is held.
  const auto ready = [](const std::future<grpc::Status>& future) {
    return future.wait_for(std::chrono::seconds(0)) == std::future_status::ready;
  };
  CHECK(
      front.Await([&](const EngineStats&) { return std::ranges::count_if(waiting, ready) == 3; }));
  gate->Open();
  CHECK(standing.get().ok());
  int served = 0;
  for (auto& future : waiting) {
    const grpc::Status status = future.get();
    served += status.ok();
    if (!status.ok()) CHECK(status.error_code() == grpc::RESOURCE_EXHAUSTED);
  }
  CHECK(served == 2);
  CHECK(Count(channel, std::string(9'000, 'a')).ok());
}

TEST_CASE("a client that never reads keeps nothing of the server") {
  const Front front(/*with_workers=*/true, {}, {.unread = {.grace = std::chrono::seconds(1)}});
  v1::GenerateRequest request = MakeRequest(10, 100'000);
  request.mutable_output()->set_logprobs(20);
  const auto stub = v1::GenerateService::NewStub(front.Connect());
  grpc::ClientContext contexts[3];
  std::vector<std::unique_ptr<grpc::ClientReader<v1::Event>>> unread;
  for (grpc::ClientContext& context : contexts) unread.push_back(stub->Generate(&context, request));
  const auto open = [&](int calls) {
    return front.Await([&](const EngineStats&) { return front.intake.open_calls() == calls; });
  };
  CHECK(open(3));
  CHECK(open(0));
  for (const auto& reader : unread) CHECK_FALSE(testing::Read(reader.get()).status.ok());
}

TEST_CASE("a deadline in the far future is none, in whatever unit it is written") {
  const Front front(/*with_workers=*/false);
  const char* timeouts[] = {"30S",      "27000H",    "2306400H", "2562047H",
                            "9999999H", "99999999H", "99999999M"};
  std::vector<std::unique_ptr<RawCall>> calls;
  for (const char* timeout : timeouts) {
    CAPTURE(timeout);
    calls.push_back(std::make_unique<RawCall>(front.port, timeout));
    CHECK(front.Await([&](const EngineStats& s) { return s.waiting == std::ssize(calls); }));
  }
}

TEST_CASE("a reader that is a little behind stays so however long its answer is") {
  bool ended = false;
  const auto call = MakeStreamWriter(nullptr, {.bytes = 1000}, [&ended] { ended = true; });
  v1::Event event;
  event.mutable_delta()->set_text("abcd");
  event.mutable_delta()->add_logprobs(-1);
  call.writer->Write(event);
  for (int i = 0; i < 10'000; ++i) {  // two deltas wait, as one, while one is written
    call.writer->Write(event);
    call.writer->Write(event);
    call.reactor->OnWriteDone(true);
  }
  CHECK_FALSE(ended);
  // One that stops reading is found at the limit.
  const size_t most = 1000 / event.ByteSizeLong();
  for (size_t i = 0; i < most; ++i) call.writer->Write(event);
  CHECK_FALSE(ended);
  call.writer->Write(event);
  CHECK(ended);
  call.reactor->OnDone();
}

}  // namespace hadal
