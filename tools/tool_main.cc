#include "tools/tool_main.h"

#include <sched.h>
#include <sys/resource.h>

#include <csignal>
#include <cstdio>
#include <exception>
#include <system_error>

#include "common/flags.h"
#include "tools/output_directory.h"
#include "tools/progress.h"

namespace hadal {
namespace {

enum ExitCode {
  kDone = 0,
  kInternal = 1,
  kUsage = 2,
  kBadSource = 3,
  kCannotWrite = 4,
  kDiffers = 5,
};

constexpr const char* kFooter =
    "A run that was killed leaves no file that loads: every file is written as NAME.partial, "
    "synced\n"
    "and renamed, and config.json comes last. Run the same command again to go on; finished files\n"
    "are compared with the source and kept. Memory stays below 1 GiB, however large the "
    "checkpoint.\n\n"
    "Exit codes: 0 done; 1 a fault of this program; 2 wrong command line; 3 the source cannot be\n"
    "used; 4 the output cannot be written (no space, no permission, another run); 5 --verify found "
    "a\n"
    "difference.";

int CodeOf(const Status& status) {
  switch (status.code()) {
    case StatusCode::kOk:
      return kDone;
    case StatusCode::kInvalidArgument:
      return kUsage;
    case StatusCode::kNotFound:
    case StatusCode::kDataLoss:
    case StatusCode::kFailedPrecondition:
      return kBadSource;
    case StatusCode::kResourceExhausted:
    case StatusCode::kUnavailable:
      return kCannotWrite;
    case StatusCode::kAborted:
      return kDiffers;
    default:
      return kInternal;
  }
}

int UsableCores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  return sched_getaffinity(0, sizeof(set), &set) == 0 ? CPU_COUNT(&set) : 1;
}

uint64_t PeakMemoryBytes() {
  struct rusage usage {};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<uint64_t>(usage.ru_maxrss) * 1024;
}

}  // namespace

ToolMain::ToolMain(std::string name, std::string description)
    : name_(std::move(name)), app_(std::move(description), name_) {
  app_.footer(kFooter);
  app_.add_flag("--dry-run", dry_run_, "print every file with its bytes, and write nothing");
  app_.add_flag("--verify", verify_,
                "write nothing; read the finished output again and compare it with the source");
  app_.add_option("--threads", threads_, "threads to work on (default: all cores)")
      ->check(CLI::Range(1, 1024));
}

int ToolMain::Run(int argc, char** argv, const std::function<StatusOr<OutputPlan>()>& make_plan) {
  std::signal(SIGXFSZ, SIG_IGN);  // a file too large is an error of the write
  if (const auto exit = ParseFlags(&app_, argc, argv)) {
    std::fputs(exit->text.c_str(), exit->code == 0 ? stdout : stderr);
    return exit->code == 0 ? kDone : kUsage;
  }
  try {
    StatusOr<OutputPlan> plan = make_plan();
    const Status status = plan.ok() ? Execute(*plan) : plan.status();
    if (!status.ok()) std::fprintf(stderr, "%s: %s\n", name_.c_str(), status.message().c_str());
    return CodeOf(status);
  } catch (const std::system_error& e) {
    std::fprintf(stderr, "%s: %s; what was finished stays, run again to go on\n", name_.c_str(),
                 e.what());
    return kCannotWrite;
  } catch (const std::exception& e) {
    std::fprintf(stderr, "%s: %s\n", name_.c_str(), e.what());
    return kInternal;
  }
}

Status ToolMain::Execute(const OutputPlan& plan) {
  if (dry_run_) {
    HADAL_ASSIGN_OR_RETURN(const std::string text, DescribePlan(plan));
    std::fputs(text.c_str(), stdout);
    return OkStatus();
  }
  for (const std::string& note : plan.notes) std::fprintf(stderr, "%s\n", note.c_str());
  const RunOptions options{
      .threads = threads_ > 0 ? threads_ : UsableCores(),
      .report = [](const std::string& line) { std::fprintf(stderr, "%s\n", line.c_str()); }};
  HADAL_ASSIGN_OR_RETURN(const RunSummary summary,
                         verify_ ? VerifyOutput(plan, options) : WriteOutput(plan, options));
  const std::string what =
      verify_ ? fmt::format("{} shard{} verified", summary.kept, summary.kept == 1 ? "" : "s")
              : fmt::format("{} shard{} written, {} kept", summary.written,
                            summary.written == 1 ? "" : "s", summary.kept);
  std::fprintf(stdout, "%s: %s, %s in %.1f s (%.2f GB/s), peak memory %s\n", plan.directory.c_str(),
               what.c_str(), ByteText(summary.bytes).c_str(), summary.seconds,
               static_cast<double>(summary.bytes) / 1e9 / summary.seconds,
               ByteText(PeakMemoryBytes()).c_str());
  return OkStatus();
}

}  // namespace hadal
