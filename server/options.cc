#include "server/options.h"

#include "common/flags.h"

namespace hadal {
namespace {

constexpr const char* kDescription =
    "The front of a Hadal deployment: takes requests over gRPC, schedules them, and sends steps to the\n"
    "worker ranks that join it. It holds no weights; start the workers with\n\n"
    "  mpirun --bind-to none -n 2 hadal-worker --model DIR --server 127.0.0.1:50052\n\n"
    "Both addresses are loopback by default. There is no encryption and no authentication of clients:\n"
    "listen on other addresses only inside a network that you trust.";

void AddModelFlags(ServedModelOptions* o, CLI::App* app) {
  app->add_option("--model", o->model_dir, "Hugging Face model directory")->required();
  app->add_option("--config", o->config_file,
                  "model configuration in place of DIR/config.json, in Hugging Face's or DeepSeek's "
                  "field names; of the same sizes, since the workers load DIR/config.json");
  app->add_option("--chat-template", o->chat_template,
                  "deepseek-v2, deepseek-v3, deepseek-v3-0324, deepseek-r1, deepseek-r1-0528, "
                  "deepseek-v3.1 or chatml (default: from the model's files)");
  app->add_option("--context-length", o->context_length,
                  "tokens of prompt and answer together (default: the model's)")
      ->check(CLI::Range(1, 1 << 30));
}

void AddEngineFlags(EngineOptions* o, double* step_deadline_s, CLI::App* app) {
  app->add_option("--max-waiting-requests", o->max_waiting_requests,
                  "requests that may wait to be scheduled; more get RESOURCE_EXHAUSTED")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  app->add_option("--max-waiting-tokens", o->max_waiting_tokens, "tokens of their prompts together")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 40))
      ->capture_default_str();
  app->add_option("--step-tokens", o->step_token_budget,
                  "prompt and decode tokens of one step (default: as many as the workers take)")
      ->check(CLI::Range(1, 65536));
  app->add_option("--step-deadline", *step_deadline_s,
                  "seconds after which a worker group that does not answer is given up")
      ->check(Seconds(0.1, 86400))
      ->capture_default_str();
}

void AddServerFlags(ServerOptions* o, CLI::App* app) {
  app->add_option("--listen", o->listen, "address of the public gRPC services; port 0: any free one")
      ->check(ListenAddress())
      ->capture_default_str();
  app->add_option("--worker-listen", o->worker_listen, "address that worker groups join")
      ->check(ListenAddress())
      ->capture_default_str();
  app->add_option("--join-secret-file", o->join_secret_file,
                  "file whose first line worker groups must know (their --join-secret-file)");
  app->add_option("--drain-timeout", o->drain_timeout_s,
                  "seconds that SIGTERM or Ctrl-C gives running requests to end and their answers to be "
                  "read; a second one gives none")
      ->check(Seconds(0, 86400))
      ->capture_default_str();
  app->add_option("--log-level", o->log_level, "trace, debug, info, warn or error")
      ->check(CLI::IsMember({"trace", "debug", "info", "warn", "error"}))
      ->capture_default_str();
}

}  // namespace

ParsedServerOptions ParseServerOptions(int argc, char** argv) {
  ParsedServerOptions parsed;
  double step_deadline_s = static_cast<double>(parsed.options.engine.step_deadline_us) / 1e6;
  CLI::App app(kDescription, "hadal-server");
  AddModelFlags(&parsed.options.model, &app);
  AddServerFlags(&parsed.options, &app);
  AddEngineFlags(&parsed.options.engine, &step_deadline_s, &app);
  parsed.exit = ParseFlags(&app, argc, argv);
  parsed.options.engine.step_deadline_us = static_cast<int64_t>(step_deadline_s * 1e6);
  return parsed;
}

}  // namespace hadal
