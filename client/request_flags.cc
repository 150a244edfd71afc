#include "client/request_flags.h"

#include <charconv>
#include <iostream>
#include <iterator>

#include "common/flags.h"

namespace hadal {

void AddServerFlag(std::string* server, CLI::App* app) {
  app->add_option("--server", *server, "hadal-server's --listen address")
      ->check(ServerAddress())
      ->capture_default_str();
}

void AddTimeoutFlag(double* timeout_s, CLI::App* app) {
  app->add_option("--timeout", *timeout_s, "seconds until a request is given up")
      ->check(Seconds(0.001))
      ->capture_default_str();
}

void AddSeedFlag(std::optional<uint64_t>* seed, const std::string& help, CLI::App* app) {
  app->add_option("--seed", *seed, help)->check([](const std::string& text) -> std::string {
    uint64_t value = 0;
    const char* const end = text.data() + text.size();
    const auto [last, error] = std::from_chars(text.data(), end, value);
    if (error == std::errc() && last == end) return "";
    return text + " is not a whole number from 0 to 18446744073709551615";
  });
}

void AddWaitFlag(double* wait_s, CLI::App* app) {
  app->add_option("--wait", *wait_s, "wait this many seconds for the server to be ready")
      ->check(Seconds(0));
}

// Ranges are the server's to check: its message names the field.
void AddRequestFlags(RequestFlags* f, CLI::App* app) {
  AddServerFlag(&f->server, app);
  app->add_option("--max-tokens", f->max_tokens, "at most this many new tokens");
  app->add_option("--temperature", f->temperature, "0 is greedy (default: the model's)");
  app->add_option("--top-p", f->top_p, "keep the most likely tokens of this total probability");
  app->add_option("--top-k", f->top_k, "keep this many of the most likely tokens, 0: all");
  app->add_option("--min-p", f->min_p, "drop tokens below this part of the likeliest one");
  AddSeedFlag(&f->seed, "the same seed gives the same answer", app);
  app->add_option("--stop", f->stop, "end before this text; may be given several times")
      ->allow_extra_args(false);
  app->add_option("--stop-token-ids", f->stop_token_ids, "end at one of these tokens")->delimiter(',');
  app->add_flag("--ignore-eos", f->ignore_eos, "go on past the end-of-sequence token");
  AddTimeoutFlag(&f->timeout_s, app);
}

std::string TextOrStdin(const std::string& text) {
  if (text != "-") return text;
  std::string all(std::istreambuf_iterator<char>(std::cin), {});
  if (all.ends_with('\n')) all.pop_back();
  return all;
}

v1::SamplingOptions ToSamplingOptions(const RequestFlags& f) {
  v1::SamplingOptions options;
  if (f.max_tokens) options.set_max_tokens(*f.max_tokens);
  if (f.temperature) options.set_temperature(*f.temperature);
  if (f.top_p) options.set_top_p(*f.top_p);
  if (f.top_k) options.set_top_k(*f.top_k);
  if (f.min_p) options.set_min_p(*f.min_p);
  if (f.seed) options.set_seed(*f.seed);
  for (const std::string& stop : f.stop) options.add_stop(stop);
  for (int id : f.stop_token_ids) options.add_stop_token_ids(id);
  if (f.ignore_eos) options.set_ignore_eos(true);
  return options;
}

}  // namespace hadal
