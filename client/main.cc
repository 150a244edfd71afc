#include <clocale>
#include <cstdio>
#include <cstdlib>
#include <functional>

#include "client/bench.h"
#include "client/chat.h"
#include "client/connection.h"
#include "client/generate.h"
#include "client/model_info.h"
#include "client/server_status.h"
#include "common/flags.h"

namespace hadal {
namespace {

using Action = std::function<Status()>;

void AddChat(CLI::App* app, Action* action) {
  auto options = std::make_shared<ChatOptions>();
  CLI::App* chat = app->add_subcommand("chat", "Talk to the model; /help inside lists the commands");
  AddRequestFlags(&options->request, chat);
  chat->add_option("--prompt", options->prompt, "answer this once on standard output; -: what standard input holds");
  chat->add_option("--system", options->system, "system prompt");
  chat->add_flag("--thinking", options->thinking, "thinking mode, for templates that know one");
  AddWaitFlag(&options->wait_s, chat);
  chat->callback([=] { *action = [=] { return RunChat(*options); }; });
}

void AddGenerate(CLI::App* app, Action* action) {
  auto options = std::make_shared<GenerateOptions>();
  CLI::App* generate = app->add_subcommand("generate", "One request: continue a text or token ids, or answer a message");
  AddRequestFlags(&options->request, generate);
  auto* prompt = generate->add_option("--prompt", options->prompt, "text to continue; -: standard input");
  auto* chat = generate->add_option("--chat", options->chat, "a user's message to answer; -: standard input");
  auto* ids = generate->add_option("--token-ids", options->token_ids, "ids to continue: 1,2,3")->delimiter(',');
  prompt->excludes(chat)->excludes(ids);
  chat->excludes(ids);
  generate->add_option("--logprobs", options->logprobs, "log-probabilities of the chosen and of the N most likely tokens");
  generate->add_flag("--prompt-logprobs", options->prompt_logprobs, "log-probabilities of the prompt's tokens");
  generate->add_flag("--json", options->json, "print one JSON object instead of streaming text");
  AddWaitFlag(&options->wait_s, generate);
  generate->callback([=] {
    if (!*prompt && !*chat && !*ids) throw CLI::RequiredError("--prompt, --chat or --token-ids");
    *action = [=] { return RunGenerate(*options); };
  });
}

void AddBench(CLI::App* app, Action* action) {
  auto options = std::make_shared<BenchOptions>();
  CLI::App* bench = app->add_subcommand("bench", "Closed-loop load test with random token ids");
  bench->add_option("--concurrency", options->concurrency, "streams at once")->check(CLI::Range(1, 4096))->capture_default_str();
  bench->add_option("--requests", options->requests, "requests in all")->check(CLI::Range(1, 10000000))->capture_default_str();
  bench->add_option("--prompt-tokens", options->prompt_tokens, "prompt length")->check(CLI::Range(1, 1000000))->capture_default_str();
  bench->add_option("--max-tokens", options->max_tokens, "answer length")->check(CLI::Range(1, 1000000))->capture_default_str();
  AddServerFlag(&options->request.server, bench);
  bench->add_option("--temperature", options->request.temperature, "0 is greedy (default: the model's)");
  AddSeedFlag(&options->request.seed, "of prompts and sampling; with that of an earlier run, prompts may be found in the prefix cache (default: a new one, printed)", bench);
  bench->add_flag("--stop-at-eos", options->stop_at_eos, "let answers end by themselves");
  AddTimeoutFlag(&options->request.timeout_s, bench);
  AddWaitFlag(&options->wait_s, bench);
  bench->add_flag("--json", options->json, "print one JSON object instead of a table");
  bench->callback([=] { *action = [=] { return RunBench(*options); }; });
}

void AddModelInfo(CLI::App* app, Action* action) {
  auto options = std::make_shared<ModelInfoOptions>();
  CLI::App* info = app->add_subcommand("model-info", "What a model directory holds and what each rank of a layout loads");
  info->add_option("dir", options->model_dir, "Hugging Face model directory, or a config file alone")->required();
  info->add_option("--tensor-parallel", options->tensor_parallel, "ranks per sequence")->check(CLI::Range(1, 1024))->capture_default_str();
  info->add_option("--data-parallel", options->data_parallel, "groups with sequences of their own")->check(CLI::Range(1, 1024))->capture_default_str();
  info->add_flag("--json", options->json, "print one JSON object");
  info->callback([=] {
    *action = [=]() -> Status {
      HADAL_ASSIGN_OR_RETURN(const std::string text, DescribeModel(*options));
      fmt::print("{}\n", text);
      return OkStatus();
    };
  });
}

void AddReady(CLI::App* app, Action* action) {
  auto options = std::make_shared<RequestFlags>();
  auto wait_s = std::make_shared<double>(0);
  CLI::App* ready = app->add_subcommand("ready", "Exit 0 when the server can answer requests");
  AddServerFlag(&options->server, ready);
  AddWaitFlag(wait_s.get(), ready);
  ready->callback([=] {
    *action = [=] { return WaitUntilReady(options->server, *wait_s); };
  });
}

void AddStatus(CLI::App* app, Action* action) {
  auto options = std::make_shared<RequestFlags>();
  auto json = std::make_shared<bool>(false);
  CLI::App* status = app->add_subcommand("status", "What the server serves and how busy it is");
  AddServerFlag(&options->server, status);
  status->add_flag("--json", *json, "print one JSON object");
  status->callback([=] { *action = [=] { return PrintServerStatus(options->server, *json); }; });
}

}  // namespace
}  // namespace hadal

int main(int argc, char** argv) {
  setenv("GRPC_VERBOSITY", "NONE", 0);  // what fails is said in one sentence of ours
  std::setlocale(LC_CTYPE, "C.UTF-8");
  CLI::App app("Client of hadal-server.", "hadal");
  app.require_subcommand(1);
  hadal::Action action;
  hadal::AddChat(&app, &action);
  hadal::AddGenerate(&app, &action);
  hadal::AddBench(&app, &action);
  hadal::AddModelInfo(&app, &action);
  hadal::AddReady(&app, &action);
  hadal::AddStatus(&app, &action);
  if (const auto exit = hadal::ParseFlags(&app, argc, argv)) {
    std::fputs(exit->text.c_str(), exit->code == 0 ? stdout : stderr);
    return exit->code;
  }
  const hadal::Status status = action();
  if (status.ok()) return 0;
  fmt::print(stderr, "hadal: {}\n", status.ToString());
  return 1;
}
