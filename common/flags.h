#pragma once

#include <CLI/CLI.hpp>
#include <optional>
#include <string>

namespace hadal {

// What a program prints and leaves with instead of running: for --help, --version and wrong flags.
struct FlagsExit {
  int code = 0;
  std::string text;
};

void AddVersionFlag(CLI::App* app);
// Of an error of parse(). An unknown argument is named before one that is missing.
FlagsExit ExitOf(const CLI::App& app, const CLI::ParseError& error);

// Adds --version and parses; null: the program may run.
std::optional<FlagsExit> ParseFlags(CLI::App* app, int argc, char** argv);

// Checks for options. Port 0, any free one, is for those who listen.
CLI::Validator ListenAddress();
CLI::Validator ServerAddress();
// Seconds within the two; unlike CLI::Range it refuses nan.
CLI::Validator Seconds(double lowest, double highest = 1e9);

}  // namespace hadal
