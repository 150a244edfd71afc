#include "common/address.h"

#include "tests/support/catch.h"
#include "tests/support/mentions.h"

namespace hadal {
namespace {
using testing::Mentions;

TEST_CASE("an address is a host and a port") {
  for (const char* good : {"127.0.0.1:50051", "localhost:1", "node-1.cluster:65535", "0.0.0.0:80",
                           "[::1]:50051", "[::]:443", "unix:/run/hadal.sock"}) {
    CAPTURE(good);
    CHECK(CheckAddress(good, 1).ok());
  }
  CHECK(CheckAddress("127.0.0.1:0", 0).ok());
  CHECK_FALSE(CheckAddress("127.0.0.1:0", 1).ok());
}

TEST_CASE("what is no address is refused with what is missing") {
  for (const char* bad : {"", "127.0.0.1", "localhost", "50051", ":50051", "::1", "::1:50051",
                          "[]:1", "http://host:80", "dns:///host:80", "a b:80", "[::1]"}) {
    CAPTURE(bad);
    const Status status = CheckAddress(bad, 0);
    CHECK(status.code() == StatusCode::kInvalidArgument);
    CHECK(Mentions(status.message(), "HOST:PORT"));
  }
  for (const char* bad : {"host:", "unix:", "host:x", "host:99999", "host:65536", "host:-1",
                          "host:+1", "host:80 ", "host:1e3", "host:99999999999999999999"}) {
    CAPTURE(bad);
    const Status status = CheckAddress(bad, 0);
    CHECK(status.code() == StatusCode::kInvalidArgument);
    CHECK(Mentions(status.message(), "port from 0 to 65535"));
  }
}

}  // namespace
}  // namespace hadal
