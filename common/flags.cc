#include "common/flags.h"

#include <fmt/format.h>

#include "common/address.h"

namespace hadal {
namespace {

CLI::Validator AddressFrom(int lowest_port) {
  return {[=](std::string& text) { return CheckAddress(text, lowest_port).message(); },
          "HOST:PORT"};
}

}  // namespace

void AddVersionFlag(CLI::App* app) {
  app->set_version_flag("--version", fmt::format("{} {}", app->get_name(), HADAL_VERSION));
}

FlagsExit ExitOf(const CLI::App& app, const CLI::ParseError& error) {
  if (error.get_name() == "CallForVersion") return {0, fmt::format("{}\n", error.what())};
  if (error.get_exit_code() == 0) return {0, app.help()};
  const std::vector<std::string> unknown = app.remaining(true);
  const std::string text = unknown.empty() ? error.what() : "unknown argument: " + unknown.front();
  return {error.get_exit_code(),
          fmt::format("{}: {}\nRun with --help for more.\n", app.get_name(), text)};
}

std::optional<FlagsExit> ParseFlags(CLI::App* app, int argc, char** argv) {
  AddVersionFlag(app);
  try {
    app->parse(argc, argv);
    return std::nullopt;
  } catch (const CLI::ParseError& error) {
    return ExitOf(*app, error);
  }
}

CLI::Validator ListenAddress() { return AddressFrom(0); }
CLI::Validator ServerAddress() { return AddressFrom(1); }

CLI::Validator Seconds(double lowest, double highest) {
  return {
      [=](std::string& text) -> std::string {
        double seconds = 0;
        if (CLI::detail::lexical_cast(text, seconds) && seconds >= lowest && seconds <= highest) {
          return "";
        }
        return fmt::format("{} is not a number of seconds from {} to {}", text, lowest, highest);
      },
      ""};
}

}  // namespace hadal
