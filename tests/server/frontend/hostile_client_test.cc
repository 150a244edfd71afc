// What clients may do to the server that other clients must not feel.

#include <string>

#include "hadal/v1/tokenizer.grpc.pb.h"
#include "tests/server/frontend/front.h"

namespace hadal {

using testing::Front;

TEST_CASE("compressed messages are refused before they are inflated") {
  const Front front;
  const auto stub = v1::TokenizerService::NewStub(front.Connect());
  v1::CountRequest request;
  request.set_text(std::string(100'000, ' '));
  for (const auto algorithm : {GRPC_COMPRESS_GZIP, GRPC_COMPRESS_DEFLATE, GRPC_COMPRESS_NONE}) {
    CAPTURE(algorithm);
    grpc::ClientContext context;
    context.set_compression_algorithm(algorithm);
    v1::CountResponse response;
    const grpc::Status status = stub->Count(&context, request, &response);
    CAPTURE(status.error_message());
    CHECK(status.error_code() ==
          (algorithm == GRPC_COMPRESS_NONE ? grpc::OK : grpc::UNIMPLEMENTED));
    CHECK(response.tokens() == (algorithm == GRPC_COMPRESS_NONE ? 100'000 : 0));
  }
}

}  // namespace hadal
