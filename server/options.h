#pragma once

#include <optional>
#include <string>

#include "common/flags.h"
#include "server/engine/engine.h"
#include "server/frontend/served_model.h"

namespace hadal {

struct ServerOptions {
  ServedModelOptions model;
  EngineOptions engine;
  std::string listen = "127.0.0.1:50051";
  std::string worker_listen = "127.0.0.1:50052";
  std::string join_secret_file;
  double drain_timeout_s = 30;
  std::string log_level = "info";
};

struct ParsedServerOptions {
  ServerOptions options;
  std::optional<FlagsExit> exit;
};
ParsedServerOptions ParseServerOptions(int argc, char** argv);

}  // namespace hadal
