#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/grpcpp.h>
#include <signal.h>
#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>

#include <chrono>
#include <cstdio>

#include "common/file.h"
#include "server/engine/grpc_worker_group.h"
#include "server/frontend/services.h"
#include "server/options.h"

namespace hadal {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

constexpr milliseconds kPoll{100};

void SetUpLog(const ServerOptions& options) {
  auto log = spdlog::stderr_color_mt("server");
  log->set_pattern("%Y-%m-%d %H:%M:%S.%e %^%l%$ [server] %v");
  spdlog::set_default_logger(log);
  spdlog::set_level(spdlog::level::from_str(options.log_level));
}

// The address with the port that was bound.
std::string Bound(const std::string& address, int port) {
  return fmt::format("{}:{}", address.substr(0, address.rfind(':')), port);
}

void WarnIfPublic(const char* flag, const std::string& address) {
  for (const char* local : {"127.", "localhost:", "[::1]:", "unix:"}) {
    if (address.rfind(local, 0) == 0) return;
  }
  spdlog::warn("{} {}: without encryption or authentication; keep it inside a trusted network", flag,
               address);
}

// The server's parts, in the order in which they depend on each other.
class Server {
 public:
  explicit Server(ServerOptions options) : options_(std::move(options)) {}

  // Blocks until a signal of `stop_signals` has ended it.
  Status Run(const sigset_t& stop_signals) {
    HADAL_ASSIGN_OR_RETURN(model_, LoadServedModel(options_.model));
    HADAL_ASSIGN_OR_RETURN(const std::string secret, ReadSecret(options_.join_secret_file));
    DescribeModel();
    EngineOptions engine_options = options_.engine;
    engine_options.vocab_limit = model_->vocab_limit;
    engine_ = MakeEngine(engine_options, &clock_);
    engine_->Start();
    intake_ = std::make_unique<Intake>(model_.get(), engine_.get(), &clock_);
    HADAL_RETURN_IF_ERROR(Listen(secret));
    Serve(stop_signals);
    Drain(stop_signals);
    Stop();
    return OkStatus();
  }

 private:
  void DescribeModel() const {
    spdlog::info("model {}: {}, context {} tokens, {}", model_->name, model_->config.architecture,
                 model_->context_length,
                 model_->tokenizer == nullptr ? "no tokenizer: token ids only"
                 : model_->chat_template == nullptr
                     ? "no chat template"
                     : fmt::format("chat template {}", model_->chat_template->name()));
    if (model_->tokenizer != nullptr && model_->chat_template == nullptr) {
      spdlog::warn("chat is not served: {}", model_->no_chat_template.message());
    }
  }

  Status Listen(const std::string& secret) {
    grpc::reflection::InitProtoReflectionServerBuilderPlugin();
    WarnIfPublic("--listen", options_.listen);
    WarnIfPublic("--worker-listen", options_.worker_listen);

    services_.push_back(MakeChatService(intake_.get()));
    services_.push_back(MakeGenerateService(intake_.get()));
    services_.push_back(MakeTokenizerService(intake_.get()));
    services_.push_back(MakeModelService(model_.get(), engine_.get()));
    grpc::ServerBuilder builder;
    ConfigurePublicServer(&builder);
    for (const auto& service : services_) builder.RegisterService(service.get());
    builder.RegisterService(health_->service());
    int port = 0;
    HADAL_ASSIGN_OR_RETURN(public_, Start("--listen", options_.listen, &builder, &port));

    services_.push_back(MakeWorkerService({.fingerprint = model_->fingerprint,
                                           .vocab_limit = model_->vocab_limit,
                                           .join_secret = secret},
                                          engine_.get()));
    grpc::ServerBuilder worker_builder;
    ConfigureWorkerServer(&worker_builder);
    worker_builder.RegisterService(services_.back().get());
    int worker_port = 0;
    HADAL_ASSIGN_OR_RETURN(
        workers_, Start("--worker-listen", options_.worker_listen, &worker_builder, &worker_port));
    spdlog::info("serving gRPC on {}", Bound(options_.listen, port));
    spdlog::info("waiting for workers on {}", Bound(options_.worker_listen, worker_port));
    return OkStatus();
  }

  static StatusOr<std::unique_ptr<grpc::Server>> Start(const char* flag, const std::string& address,
                                                       grpc::ServerBuilder* builder, int* port) {
    builder->AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
    builder->AddListeningPort(address, grpc::InsecureServerCredentials(), port);
    std::unique_ptr<grpc::Server> server = builder->BuildAndStart();
    if (server == nullptr || *port == 0) {
      return FailedPrecondition("{} {}: cannot listen there; is the port in use, or the address not of "
                                "this host?", flag, address);
    }
    return server;
  }

  // Until the first signal; keeps the health service true meanwhile.
  void Serve(const sigset_t& stop_signals) {
    bool healthy = false;
    while (!Signalled(stop_signals)) {
      const bool ready = engine_->stats().ready;
      if (ready == std::exchange(healthy, ready)) continue;
      health_->SetServing(ready);
      spdlog::info("{}", ready ? "ready" : "not ready: no worker group");
    }
  }

  static bool Signalled(const sigset_t& stop_signals) {
    timespec poll{0, kPoll.count() * 1'000'000};
    return sigtimedwait(&stop_signals, nullptr, &poll) > 0;
  }

  // Running requests end and their answers are read; a second signal or the end of --drain-timeout ends
  // both.
  void Drain(const sigset_t& stop_signals) {
    health_->SetServing(false);
    engine_->StartDrain();
    const auto start = steady_clock::now();
    auto next_line = start;
    while (!engine_->Drained() || intake_->open_calls() > 0) {
      const auto now = steady_clock::now();
      if (now - start >= std::chrono::duration<double>(options_.drain_timeout_s)) {
        spdlog::warn("ending what still runs after {} s", options_.drain_timeout_s);
        return;
      }
      if (now >= next_line) {
        const EngineStats stats = engine_->stats();
        spdlog::info("draining: {} requests run, {} wait, {} calls are open", stats.running, stats.waiting,
                     intake_->open_calls());
        next_line = now + std::chrono::seconds(2);
      }
      if (Signalled(stop_signals)) return spdlog::warn("a second signal: ending what still runs");
    }
    spdlog::info("drained");
  }

  void Stop() {
    engine_->Stop();
    intake_->Stop();
    health_->EndWatches();
    const auto soon = std::chrono::system_clock::now() + std::chrono::seconds(1);
    public_->Shutdown(soon);
    workers_->Shutdown(soon);
  }

  const ServerOptions options_;
  const SteadyClock clock_;
  std::unique_ptr<ServedModel> model_;
  std::unique_ptr<Engine> engine_;
  std::unique_ptr<Intake> intake_;
  std::vector<std::unique_ptr<grpc::Service>> services_;
  const std::unique_ptr<HealthService> health_ = MakeHealthService();
  std::unique_ptr<grpc::Server> public_;
  std::unique_ptr<grpc::Server> workers_;
};

}  // namespace
}  // namespace hadal

int main(int argc, char** argv) {
  setenv("GRPC_VERBOSITY", "NONE", 0);  // what fails is said in one sentence of ours
  const hadal::ParsedServerOptions parsed = hadal::ParseServerOptions(argc, argv);
  if (parsed.exit) {
    std::fputs(parsed.exit->text.c_str(), parsed.exit->code == 0 ? stdout : stderr);
    return parsed.exit->code;
  }
  // Blocked in every thread, taken by sigtimedwait.
  sigset_t stop_signals;
  sigemptyset(&stop_signals);
  sigaddset(&stop_signals, SIGINT);
  sigaddset(&stop_signals, SIGTERM);
  pthread_sigmask(SIG_BLOCK, &stop_signals, nullptr);
  hadal::SetUpLog(parsed.options);
  const hadal::Status status = hadal::Server(parsed.options).Run(stop_signals);
  if (status.ok()) return 0;
  spdlog::error("{}", status.message());
  return 1;
}
