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

std::optional<FlagsExit> ParseFlags(CLI::App* app, int argc, char** argv) {
  app->set_version_flag("--version", fmt::format("{} {}", app->get_name(), HADAL_VERSION));
  try {
    app->parse(argc, argv);
    return std::nullopt;
  } catch (const CLI::CallForVersion& version) {
    return FlagsExit{0, fmt::format("{}\n", version.what())};
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return FlagsExit{0, app->help()};
    const std::vector<std::string> unknown = app->remaining(true);
    return FlagsExit{
        error.get_exit_code(),
        fmt::format("{}: {}\nRun with --help for more.\n", app->get_name(),
                    unknown.empty() ? error.what() : "unknown argument: " + unknown.front())};
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
