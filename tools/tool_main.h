#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <string>

#include "common/status.h"
#include "tools/output_plan.h"

namespace hadal {

// What the three tools share: flags, exit codes, what they print.
class ToolMain {
 public:
  // `description` is what --help shows before the flags.
  ToolMain(std::string name, std::string description);

  // For the tool's own flags.
  CLI::App& app() { return app_; }
  // Parses, plans, runs, prints. Returns the process's exit code.
  int Run(int argc, char** argv, const std::function<StatusOr<OutputPlan>()>& make_plan);

 private:
  Status Execute(const OutputPlan& plan);

  const std::string name_;
  CLI::App app_;
  int threads_ = 0;
  bool dry_run_ = false;
  bool verify_ = false;
};

}  // namespace hadal
