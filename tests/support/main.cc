#ifdef HADAL_CATCH2_V3
#include <catch2/catch_session.hpp>
#else
#define CATCH_CONFIG_RUNNER
#include <catch2/catch.hpp>
#endif

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>

#include "tests/support/random_seed.h"

namespace {
uint64_t g_seed = 0;
}  // namespace

namespace hadal::testing {
uint64_t RandomSeed() { return g_seed; }
}  // namespace hadal::testing

int main(int argc, char** argv) {
  const char* fixed = std::getenv("HADAL_TEST_SEED");
  g_seed = fixed ? std::strtoull(fixed, nullptr, 10) : std::random_device{}();
  std::printf("HADAL_TEST_SEED=%llu\n", static_cast<unsigned long long>(g_seed));
  std::fflush(stdout);
  return Catch::Session().run(argc, argv);
}
