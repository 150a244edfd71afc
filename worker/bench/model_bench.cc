// hadal-model-bench: prefill and decode of one rank without server or network, against the ceilings
// of this machine measured in the same run.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <optional>

#include "worker/backends.h"
#include "worker/bench/rank_bench.h"

namespace hadal {
namespace {

constexpr const char* kDescription =
    "Times prefill and decode steps of one rank, in percent of this machine's read bandwidth and\n"
    "matrix-product rate, both measured in the same run.\n\n"
    "--simulate-layout T,D loads one rank's shard of a T x D layout and runs it alone, with as many\n"
    "sequences in each of the D groups as --batch and --prompt-batch say. Collectives move within this\n"
    "device what they would read and write on it: the time on the wire is NOT included, and results\n"
    "are not those of the model. What a rank of DeepSeek-V3 takes on 8 cards:\n\n"
    "  hadal-model-bench --model DIR --dummy --device cuda --simulate-layout 8,1 --batch 1 8 64 128\n\n"
    "DIR holds configs/config_671B.json as config.json.";

// What is reported beside the measurements.
struct Run {
  std::string backend;
  Layout layout;
  std::string memory;
  MachineCeilings ceilings;
};

void PrintOps(const StepTime& time) {
  double rest = time.seconds;
  const auto line = [&](const std::string& op, int calls, double seconds) {
    fmt::print("  {:<26} {:>4} x {:>9.3f} ms {:>6.1f} %\n", op, calls, seconds * 1e3,
               100 * seconds / time.seconds);
  };
  for (const OpTime& op : time.ops) {
    line(op.op, op.calls, op.seconds);
    rest -= op.seconds;
  }
  line("between ops", 1, rest);
}

nlohmann::json OpsJson(const std::vector<OpTime>& ops) {
  auto out = nlohmann::json::array();
  for (const OpTime& op : ops) {
    out.push_back({{"op", op.op}, {"calls", op.calls}, {"ms", op.seconds * 1e3}});
  }
  return out;
}

void PrintTable(const std::vector<Measurement>& results, const Run& run) {
  const Layout& layout = run.layout;
  fmt::print("{}\n{}\n", run.backend, run.memory);
  if (layout.world() > 1) {
    fmt::print("simulation of rank {} of {} x {} alone: without the time on the wire, values are not the "
               "model's; seqs, tokens and tok/s are of one of {} groups, all tok/s of the deployment\n",
               layout.rank, layout.tensor_parallel, layout.data_parallel, layout.data_parallel);
  }
  fmt::print("read bandwidth {:.1f} GB/s, matmul ceiling {:.0f} GFLOP/s\n\n", run.ceilings.read_gbs,
             run.ceilings.matmul_gflops);
  fmt::print("{:<8} {:>5} {:>7} {:>9} {:>8} {:>9} {:>9} {:>8} {:>9} {:>8} {:>8}\n", "phase", "seqs",
             "tokens", "ms", "host us", "tok/s", "all tok/s", "GB/s", "GFLOP/s", "% read", "% flops");
  for (const Measurement& m : results) {
    const double seconds = m.time.seconds;
    const double gbs = m.cost.bytes / seconds / 1e9, rate = m.cost.flops / seconds / 1e9;
    const double tokens = m.tokens_per_step / seconds;
    fmt::print("{:<8} {:>5} {:>7} {:>9.2f} {:>8.0f} {:>9.1f} {:>9.1f} {:>8.1f} {:>9.1f} {:>8.1f} {:>8.1f}\n",
               m.phase, m.sequences, m.tokens_per_step, seconds * 1e3, m.time.host_seconds * 1e6, tokens,
               tokens * layout.data_parallel, gbs, rate, 100 * gbs / run.ceilings.read_gbs,
               100 * rate / run.ceilings.matmul_gflops);
    if (!m.time.ops.empty()) PrintOps(m.time);
  }
}

void PrintJson(const std::vector<Measurement>& results, const Run& run, const RankBenchOptions& options) {
  nlohmann::json out = {{"backend", run.backend}, {"threads", options.threads},
                        {"read_GBs", run.ceilings.read_gbs},
                        {"matmul_GFLOPs", run.ceilings.matmul_gflops}, {"memory", run.memory},
                        {"results", nlohmann::json::array()}};
  const Layout& layout = run.layout;
  if (layout.world() > 1) {
    out["simulated_rank_without_wire_time"] = {{"tensor_parallel", layout.tensor_parallel},
                                               {"data_parallel", layout.data_parallel},
                                               {"rank", layout.rank}};
  }
  for (const Measurement& m : results) {
    const double seconds = m.time.seconds;
    const double gbs = m.cost.bytes / seconds / 1e9, rate = m.cost.flops / seconds / 1e9;
    out["results"].push_back({{"phase", m.phase}, {"sequences", m.sequences},
                              {"tokens", m.tokens_per_step}, {"ms", seconds * 1e3},
                              {"host_us", m.time.host_seconds * 1e6},
                              {"tokens_per_s", m.tokens_per_step / seconds},
                              {"all_tokens_per_s", layout.data_parallel * m.tokens_per_step / seconds},
                              {"GBs", gbs}, {"GFLOPs", rate},
                              {"percent_read", 100 * gbs / run.ceilings.read_gbs},
                              {"percent_matmul", 100 * rate / run.ceilings.matmul_gflops}});
    if (options.ops) out["results"].back()["ops"] = OpsJson(m.time.ops);
  }
  fmt::print("{}\n", out.dump());
}

// Of the probes before and behind the measurements: those behind alone found less than steps had read
// (an H200 3,870 GB/s, a step of eight sequences 3,940).
MachineCeilings Larger(const MachineCeilings& a, const MachineCeilings& b) {
  return {std::max(a.read_gbs, b.read_gbs), std::max(a.matmul_gflops, b.matmul_gflops)};
}

Status Measure(const RankBenchOptions& options) {
  std::optional<RankBench> bench(options);
  HADAL_RETURN_IF_ERROR(bench->Open());
  const MachineCeilings before = MeasureCeilings(options.device, options.threads);
  HADAL_RETURN_IF_ERROR(bench->Load());
  const std::vector<Measurement> results = bench->Run();
  Run run{bench->backend().name(), bench->layout(), bench->memory(), {}};
  bench.reset();  // the probes need memory, too
  run.ceilings = Larger(before, MeasureCeilings(options.device, options.threads));
  options.json ? PrintJson(results, run, options) : PrintTable(results, run);
  return OkStatus();
}

}  // namespace
}  // namespace hadal

int main(int argc, char** argv) {
  hadal::RankBenchOptions options;
  CLI::App app(hadal::kDescription, "hadal-model-bench");
  app.add_option("--model", options.model_dir, "Hugging Face model directory")->required();
  app.add_option("--device", options.device, "what computes")
      ->check(CLI::IsMember(hadal::BackendNames()))
      ->capture_default_str();
  app.add_flag_callback("--dummy", [&] { options.dummy = true; },
                        "random weights: --model needs a config.json only");
  app.add_option("--threads", options.threads, "threads")->check(CLI::Range(1, 1024))->capture_default_str();
  app.add_option("--cpu-isa", options.isa, "instruction set (default: the best of this machine)");
  auto* layout = app.add_option("--simulate-layout", options.simulated_layout,
                                "T,D: one rank of this layout alone, see above");
  app.add_option("--simulate-rank", options.simulated_rank, "which rank of it")
      ->check(CLI::Range(0, 1 << 20))
      ->needs(layout)
      ->capture_default_str();
  app.add_option("--batch", options.batches, "decode batch sizes")->check(CLI::Range(1, 4096))->capture_default_str();
  app.add_option("--prompt", options.prompts, "prefill lengths")->check(CLI::Range(1, 65536))->capture_default_str();
  app.add_option("--prompt-batch", options.prompt_batches, "prompts of one prefill step")
      ->check(CLI::Range(1, 256))
      ->capture_default_str();
  app.add_option("--context", options.context, "tokens before decoding; with --steps for each of the repeats, and one more, "
                 "at most the model's context")->check(CLI::Range(1, 65536))->capture_default_str();
  app.add_option("--steps", options.decode_steps, "decode steps per repeat")->check(CLI::Range(1, 4096))->capture_default_str();
  app.add_option("--repeats", options.repeats, "the best of this many counts")->check(CLI::Range(1, 100))->capture_default_str();
  app.add_flag("--json", options.json, "one JSON object");
  app.add_flag("--ops", options.ops,
               "also the time of each kind of op; steps then run op by op and are not replayed");
  CLI11_PARSE(app, argc, argv);
  if (const hadal::Status status = hadal::Measure(options); !status.ok()) {
    fmt::print(stderr, "hadal-model-bench: {}\n", status.message());
    return 1;
  }
  return 0;
}
