#include "client/chat.h"

#include <unistd.h>

#include <atomic>
#include <charconv>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <thread>

#include "client/connection.h"
#include "client/line_editor.h"
#include "hadal/v1/chat.grpc.pb.h"

namespace hadal {
namespace {

std::atomic<bool> g_interrupted{false};

constexpr const char* kHelp =
    "/clear            forget the conversation\n"
    "/system TEXT      set the system prompt (empty: none) and forget the conversation\n"
    "/set KEY VALUE    temperature, top_p, top_k, min_p, seed, max_tokens or thinking (on, off)\n"
    "/set              show what is set\n"
    "/exit             leave\n"
    "Ctrl-C stops an answer; at the prompt it leaves.\n";

// Cancels a call while it runs when Ctrl-C is pressed.
class InterruptWatch {
 public:
  explicit InterruptWatch(grpc::ClientContext* context) {
    g_interrupted = false;
    previous_ = std::signal(SIGINT, [](int) { g_interrupted = true; });
    thread_ = std::jthread([context](std::stop_token stop) {
      while (!stop.stop_requested() && !g_interrupted) {
        std::this_thread::sleep_for(std::chrono::milliseconds(30));
      }
      if (g_interrupted) context->TryCancel();
    });
  }
  ~InterruptWatch() {
    thread_.request_stop();
    thread_.join();
    std::signal(SIGINT, previous_);
  }
  InterruptWatch(const InterruptWatch&) = delete;
  InterruptWatch& operator=(const InterruptWatch&) = delete;

 private:
  void (*previous_)(int) = SIG_DFL;
  std::jthread thread_;
};

template <typename T>
bool ParseNumber(const std::string& text, T* out) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), *out);
  return error == std::errc() && end == text.data() + text.size() && !text.empty();
}

template <typename T>
bool SetOptional(const std::string& text, std::optional<T>* out) {
  T value{};
  if (!ParseNumber(text, &value)) return false;
  *out = value;
  return true;
}

class ChatSession {
 public:
  explicit ChatSession(ChatOptions options)
      : options_(std::move(options)),
        stub_(v1::ChatService::NewStub(OpenChannel(options_.request.server))) {}

  // Adds the turn and its answer to the conversation, or neither when it fails or is stopped.
  Status Answer(const std::string& text, bool with_rate) {
    v1::ChatRequest request;
    if (options_.system) AddTurn(v1::ROLE_SYSTEM, *options_.system, &request);
    for (const auto& [role, content] : turns_) AddTurn(role, content, &request);
    AddTurn(v1::ROLE_USER, text, &request);
    *request.mutable_sampling() = ToSamplingOptions(options_.request);
    if (options_.thinking) request.set_thinking(true);
    std::string answer;
    HADAL_RETURN_IF_ERROR(Stream(request, with_rate, &answer));
    turns_.emplace_back(v1::ROLE_USER, text);
    turns_.emplace_back(v1::ROLE_ASSISTANT, answer);
    return OkStatus();
  }

  Status Command(const std::string& line, bool* exit) {
    const std::string name = line.substr(0, line.find(' '));
    const std::string rest = name.size() < line.size() ? line.substr(name.size() + 1) : "";
    if (name == "/exit" || name == "/quit") {
      *exit = true;
    } else if (name == "/clear") {
      turns_.clear();
    } else if (name == "/system") {
      turns_.clear();
      options_.system = rest.empty() ? std::nullopt : std::optional(rest);
    } else if (name == "/set") {
      return Set(rest);
    } else if (name == "/help") {
      fmt::print("{}", kHelp);
    } else {
      return InvalidArgument("{} is no command; /help lists them", name);
    }
    return OkStatus();
  }

 private:
  static void AddTurn(v1::Role role, const std::string& content, v1::ChatRequest* request) {
    v1::ChatMessage* message = request->add_messages();
    message->set_role(role);
    message->set_content(content);
  }

  Status Stream(const v1::ChatRequest& request, bool with_rate, std::string* answer) {
    grpc::ClientContext context;
    context.set_deadline(DeadlineAfter(options_.request.timeout_s));
    v1::Summary summary;
    grpc::Status status;
    {
      const InterruptWatch watch(&context);
      WaitNotice notice(options_.request.server);
      const auto reader = stub_->Chat(&context, request);
      v1::Event event;
      while (reader->Read(&event)) {
        if (!event.has_accepted()) notice.Heard();
        if (event.has_summary()) summary = event.summary();
        if (!event.has_delta()) continue;
        *answer += event.delta().text();
        std::fwrite(event.delta().text().data(), 1, event.delta().text().size(), stdout);
        std::fflush(stdout);
      }
      status = reader->Finish();
    }
    fmt::print("\n");
    if (g_interrupted && !status.ok()) {
      return {StatusCode::kCancelled, "stopped"};
    }
    HADAL_RETURN_IF_ERROR(FromGrpc(status, options_.request.server, options_.request.timeout_s));
    if (with_rate) PrintRate(summary);
    return OkStatus();
  }

  static void PrintRate(const v1::Summary& summary) {
    const int tokens = summary.usage().completion_tokens();
    const double rate = summary.decode_ms() > 0 ? (tokens - 1) / summary.decode_ms() * 1e3 : 0;
    const bool color = isatty(STDOUT_FILENO) != 0;
    fmt::print("{}[{} tokens, {:.1f} tokens/s, first after {:.0f} ms]{}\n\n", color ? "\033[2m" : "",
               tokens, rate, summary.queue_ms() + summary.prefill_ms(), color ? "\033[0m" : "");
  }

  Status Set(const std::string& rest) {
    RequestFlags& r = options_.request;
    const size_t space = rest.find(' ');
    const std::string key = rest.substr(0, space);
    const std::string value = space == std::string::npos ? "" : rest.substr(space + 1);
    bool ok = false;
    if (key == "temperature") ok = SetOptional(value, &r.temperature);
    else if (key == "top_p") ok = SetOptional(value, &r.top_p);
    else if (key == "top_k") ok = SetOptional(value, &r.top_k);
    else if (key == "min_p") ok = SetOptional(value, &r.min_p);
    else if (key == "seed") ok = SetOptional(value, &r.seed);
    else if (key == "max_tokens") ok = SetOptional(value, &r.max_tokens);
    else if (key == "thinking") {
      ok = value == "on" || value == "off";
      if (ok) options_.thinking = value == "on";
    } else if (key.empty()) {
      fmt::print("{}thinking: {}\n", ToSamplingOptions(r).DebugString(), options_.thinking ? "on" : "off");
      return OkStatus();
    }
    if (ok) return OkStatus();
    return InvalidArgument("/set {} {}: unknown key or not a number; see /help", key, value);
  }

  ChatOptions options_;
  std::unique_ptr<v1::ChatService::Stub> stub_;
  std::vector<std::pair<v1::Role, std::string>> turns_;
};

}  // namespace

Status RunChat(const ChatOptions& options) {
  const std::string& server = options.request.server;
  if (options.wait_s > 0) HADAL_RETURN_IF_ERROR(WaitUntilReady(server, options.wait_s));
  ChatSession session(options);
  if (options.prompt) return session.Answer(TextOrStdin(*options.prompt), false);

  HADAL_ASSIGN_OR_RETURN(const v1::GetModelResponse model, GetModel(server));
  fmt::print("{} at {}; /help lists the commands.\n\n", model.model(), server);
  LineEditor editor;
  std::string line;
  bool exit = false;
  while (!exit && editor.ReadLine("> ", &line) == LineEditor::End::kLine) {
    if (line.empty()) continue;
    const Status status =
        line[0] == '/' ? session.Command(line, &exit) : session.Answer(line, true);
    if (!isatty(STDIN_FILENO)) HADAL_RETURN_IF_ERROR(status);  // a script goes no further
    if (status.code() == StatusCode::kCancelled) {
      fmt::print("[stopped]\n\n");
    } else if (!status.ok()) {
      fmt::print(stderr, "{}\n\n", status.ToString());
    }
  }
  return OkStatus();
}

}  // namespace hadal
