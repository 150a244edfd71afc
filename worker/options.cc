#include "worker/options.h"

#include "common/flags.h"
#include "worker/backends.h"
#include "worker/runtime/memory_budget.h"

namespace hadal {
namespace {

constexpr const char* kDescription =
    "One rank of a Hadal worker group. Started by mpirun, all ranks with the same options:\n\n"
    "  mpirun --bind-to none -n 2 hadal-worker --model DIR --server 127.0.0.1:50052\n\n"
    "Without --bind-to none OpenMPI keeps each of two ranks on one core.\n"
    "Each rank holds one shard of the model; rank 0 joins the server, which may be started before or\n"
    "after, and joins again when the server comes back.";

void AddMemoryFlags(WorkerOptions* o, std::string* kv_memory, CLI::App* app) {
  auto* blocks = app->add_option("--kv-blocks", o->kv_blocks,
                                 "KV cache blocks of 64 tokens (default: from the free memory)")
                     ->check(CLI::Range(1, 1 << 30));
  app->add_option("--kv-memory", *kv_memory, "KV cache size instead, as 8GiB or in bytes")
      ->excludes(blocks);
  app->add_option("--max-slots", o->max_slots, "sequences that run at once, per data-parallel group")
      ->check(CLI::Range(1, 65536))
      ->capture_default_str();
  app->add_option("--max-step-tokens", o->max_step_tokens,
                  "tokens of one step, per data-parallel group; more is faster for long prompts and "
                  "needs more workspace (default: 512 on cpu, 4096 on cuda)")
      ->check(CLI::Range(1, 65536));
  app->add_option("--expanded-tokens", o->expanded_tokens,
                  "cpu: positions of a prompt whose keys and values are kept expanded while its chunks "
                  "run (one prompt at a time); 0 saves the memory, and chunks late in a long prompt "
                  "take longer (default: 4096, fewer where they took an eighth of the memory, or what "
                  "weights and KV blocks need)")
      ->check(CLI::Range(0, 1 << 24));
}

void AddFlags(WorkerOptions* o, std::string* kv_memory, CLI::App* app) {
  app->add_option("--model", o->model_dir, "Hugging Face model directory")->required();
  app->add_option("--server", o->server, "hadal-server's --worker-listen address")
      ->check(ServerAddress())
      ->capture_default_str();
  app->add_option("--tensor-parallel", o->tensor_parallel,
                  "ranks that share one sequence's heads, MLPs and vocabulary (default: all ranks / "
                  "--data-parallel)")
      ->check(CLI::Range(1, 1024));
  app->add_option("--data-parallel", o->data_parallel,
                  "groups with sequences and KV cache of their own; experts are spread over all")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  app->add_option("--backend", o->backend, "what computes")
      ->check(CLI::IsMember(BackendNames()))
      ->capture_default_str();
  app->add_option("--cpu-isa", o->isa,
                  "instruction set of the cpu backend (default: the best of this machine)");
  app->add_option("--activations", o->activations,
                  "cuda: what activations are rounded to; auto is bfloat16 for models whose attention "
                  "has the released dimensions, float32 for others and for F32 checkpoints")
      ->check(CLI::IsMember(kActivationNames))
      ->capture_default_str();
  app->add_option("--load-format", o->load_format,
                  "auto: the model's files; dummy: random weights, for benchmarks of a config alone")
      ->check(CLI::IsMember({"auto", "dummy"}))
      ->capture_default_str();
  app->add_option("--threads", o->threads, "threads of this rank (default: the cores that mpirun leaves it, "
                  "divided by the ranks of the host that share them)")
      ->check(CLI::Range(1, 1024));
  AddMemoryFlags(o, kv_memory, app);
  app->add_flag_callback("--no-warmup", [o] { o->warm_up = false; },
                         "cuda: joins the server at once; each shape of a decode step is then recorded "
                         "when it first comes up, while its streams wait");
  app->add_option("--step-timeout", o->step_timeout_s,
                  "seconds after which a rank that is silent within a step ends the group; starting takes "
                  "as long as it takes")
      ->check(Seconds(0.1, 86400))
      ->capture_default_str();
  app->add_option("--join-secret-file", o->join_secret_file,
                  "file with the secret that the server's --join-secret-file holds");
  app->add_option("--log-level", o->log_level, "trace, debug, info, warn or error")
      ->check(CLI::IsMember({"trace", "debug", "info", "warn", "error"}))
      ->capture_default_str();
}

}  // namespace

StartFacts SharedOptions(const WorkerOptions& options) {
  return {{"--tensor-parallel", std::to_string(options.tensor_parallel)},
          {"--data-parallel", std::to_string(options.data_parallel)},
          {"--backend", options.backend},
          {"--activations", options.activations},
          {"--load-format", options.load_format},
          {"--max-slots", std::to_string(options.max_slots)},
          {"--max-step-tokens", std::to_string(options.max_step_tokens)},
          {"--no-warmup", options.warm_up ? "unset" : "set"}};
}

ParsedOptions ParseWorkerOptions(int argc, char** argv) {
  ParsedOptions parsed;
  std::string kv_memory;
  CLI::App app(kDescription, "hadal-worker");
  AddFlags(&parsed.options, &kv_memory, &app);
  AddVersionFlag(&app);
  try {
    app.parse(argc, argv);
    if (!kv_memory.empty()) {
      StatusOr<int64_t> bytes = ParseBytes(kv_memory);
      if (!bytes.ok()) throw CLI::ValidationError("--kv-memory", bytes.status().message());
      parsed.options.kv_memory = *bytes;
    }
    int32_t& step_tokens = parsed.options.max_step_tokens;
    if (step_tokens == 0) step_tokens = parsed.options.backend == "cpu" ? 512 : 4096;
  } catch (const CLI::ParseError& e) {
    const FlagsExit exit = ExitOf(app, e);
    parsed.exit = true;
    parsed.exit_code = exit.code;
    parsed.text = exit.text;
  }
  return parsed;
}

}  // namespace hadal
