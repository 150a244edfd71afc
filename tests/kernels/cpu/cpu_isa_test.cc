#include "kernels/cpu/cpu_isa.h"

#include <algorithm>

#include "tests/support/catch.h"

namespace hadal {
namespace {

TEST_CASE("instruction sets begin with the portable one and are found by name, the best by none") {
  const std::vector<CpuIsa> isas = SupportedCpuIsas();
  REQUIRE(!isas.empty());
  CHECK(isas.front() == CpuIsa::kPortable);
  std::vector<CpuIsa> sorted = isas;
  std::sort(sorted.begin(), sorted.end());
  CHECK(std::adjacent_find(sorted.begin(), sorted.end()) == sorted.end());
  for (const CpuIsa isa : isas) {
    CHECK(IsSupported(isa));
    const auto parsed = ParseCpuIsa(CpuIsaName(isa));
    REQUIRE(parsed.ok());
    CHECK(*parsed == isa);
  }
  CHECK(*ParseCpuIsa("") == isas.back());
}

TEST_CASE("an unknown instruction set is refused with the list of those there are") {
  const auto parsed = ParseCpuIsa("neon");
  REQUIRE(!parsed.ok());
  CHECK(parsed.status().code() == StatusCode::kInvalidArgument);
  CHECK(parsed.status().message().find("neon") != std::string::npos);
  CHECK(parsed.status().message().find("portable") != std::string::npos);
}

}  // namespace
}  // namespace hadal
