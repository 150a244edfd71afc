#include "server/frontend/request_builder.h"

#include <cmath>
#include <functional>
#include <limits>

#include "tests/server/frontend/test_model.h"
#include "tests/support/catch.h"

namespace hadal {
namespace {

using testing::MakeServedModel;

v1::ChatRequest Hello() {
  v1::ChatRequest request;
  v1::ChatMessage* message = request.add_messages();
  message->set_role(v1::ROLE_USER);
  message->set_content("hello");
  return request;
}

v1::GenerateRequest Continue(const std::string& text) {
  v1::GenerateRequest request;
  request.set_text(text);
  return request;
}

// The refusal is the caller's fault and its sentence begins with the field.
void CheckRefused(const Status& status, const std::string& field) {
  CAPTURE(field, status.ToString());
  CHECK(status.code() == StatusCode::kInvalidArgument);
  CHECK(status.message().substr(0, field.size()) == field);
}

}  // namespace

TEST_CASE("what is wrong with a conversation is refused by name") {
  const auto model = MakeServedModel();
  const auto refused = [&](const std::string& field, const std::function<void(v1::ChatRequest*)>& change) {
    v1::ChatRequest request = Hello();
    change(&request);
    CheckRefused(BuildRequest(request, *model).status(), field);
  };
  REQUIRE(BuildRequest(Hello(), *model).ok());
  refused("messages:", [](auto* r) { r->clear_messages(); });
  refused("messages[0].role:", [](auto* r) { r->mutable_messages(0)->clear_role(); });
  refused("messages[0].role:", [](auto* r) { r->mutable_messages(0)->set_role(static_cast<v1::Role>(9)); });
  refused("messages[0].content:", [](auto* r) { r->mutable_messages(0)->clear_content(); });
  refused("messages[1].role:", [](auto* r) {
    r->add_messages()->set_role(v1::ROLE_ASSISTANT);
    r->mutable_messages(1)->set_content("my own words");
  });
  refused("messages:", [](auto* r) { r->mutable_messages(0)->set_content(std::string(200, 'x')); });
  refused("thinking", [](auto* r) { r->set_thinking(true); });
}

TEST_CASE("what is wrong with the options is refused by name") {
  const auto model = MakeServedModel();
  const auto refused = [&](const std::string& field,
                           const std::function<void(v1::SamplingOptions*, v1::OutputOptions*)>& change) {
    v1::ChatRequest request = Hello();
    change(request.mutable_sampling(), request.mutable_output());
    CheckRefused(BuildRequest(request, *model).status(), field);
  };
  const float nan = std::nanf("");
  const float infinity = std::numeric_limits<float>::infinity();
  for (const float bad : {nan, infinity, -infinity, -0.1f}) {
    refused("sampling.temperature:", [&](auto* s, auto*) { s->set_temperature(bad); });
  }
  for (const float bad : {nan, infinity, 0.0f, 1.01f, -1.0f}) {
    refused("sampling.top_p:", [&](auto* s, auto*) { s->set_top_p(bad); });
  }
  for (const float bad : {nan, 1.0f, -0.5f}) {
    refused("sampling.min_p:", [&](auto* s, auto*) { s->set_min_p(bad); });
  }
  refused("sampling.top_k:", [](auto* s, auto*) { s->set_top_k(-1); });
  refused("sampling.max_tokens:", [](auto* s, auto*) { s->set_max_tokens(0); });
  refused("sampling.max_tokens:", [](auto* s, auto*) { s->set_max_tokens(-5); });
  refused("sampling.max_tokens:", [](auto* s, auto*) { s->set_max_tokens(100); });  // and the prompt
  refused("sampling.stop:", [](auto* s, auto*) {
    for (int i = 0; i < 17; ++i) s->add_stop("x");
  });
  refused("sampling.stop[1]:", [](auto* s, auto*) {
    s->add_stop("x");
    s->add_stop("");
  });
  refused("sampling.stop[0]:", [](auto* s, auto*) { s->add_stop(std::string(257, 'x')); });
  refused("sampling.stop_token_ids:", [](auto* s, auto*) {
    for (int i = 0; i < 65; ++i) s->add_stop_token_ids(1);
  });
  refused("sampling.stop_token_ids[1]:", [](auto* s, auto*) {
    s->add_stop_token_ids(299);
    s->add_stop_token_ids(300);
  });
  refused("output.logprobs:", [](auto*, auto* o) { o->set_logprobs(21); });
  refused("output.logprobs:", [](auto*, auto* o) { o->set_logprobs(-1); });
}

TEST_CASE("what is wrong with a prompt is refused by name") {
  const auto model = MakeServedModel();
  CheckRefused(BuildRequest(v1::GenerateRequest(), *model).status(), "prompt:");
  CheckRefused(BuildRequest(Continue(""), *model).status(), "text:");
  CheckRefused(BuildRequest(Continue(std::string(100, 'x')), *model).status(), "text:");
  for (const int32_t bad : {-1, 300}) {
    v1::GenerateRequest request;
    request.mutable_token_ids()->add_ids(5);
    request.mutable_token_ids()->add_ids(bad);
    CheckRefused(BuildRequest(request, *model).status(), "token_ids.ids[1]:");
  }
  v1::GenerateRequest other = Continue("x");
  other.set_model("another");
  CHECK(BuildRequest(other, *model).status().code() == StatusCode::kNotFound);
  other.set_model("toy");
  CHECK(BuildRequest(other, *model).ok());
}

TEST_CASE("without tokenizer or template the calls that need them say so") {
  const auto model = MakeServedModel();
  model->chat_template.reset();
  model->no_chat_template = FailedPrecondition("no template; --chat-template names one");
  CHECK(BuildRequest(Hello(), *model).status().message() == model->no_chat_template.message());
  CHECK(BuildRequest(Continue("x"), *model).ok());
  model->tokenizer.reset();
  CHECK(BuildRequest(Hello(), *model).status().code() == StatusCode::kFailedPrecondition);
  CHECK(BuildRequest(Continue("x"), *model).status().code() == StatusCode::kFailedPrecondition);
  v1::GenerateRequest ids;
  ids.mutable_token_ids()->add_ids(5);
  const auto built = BuildRequest(ids, *model);
  REQUIRE(built.ok());
  CHECK(built->answer.token_ids);
  ids.mutable_sampling()->add_stop("x");
  CHECK(BuildRequest(ids, *model).status().code() == StatusCode::kFailedPrecondition);
}

TEST_CASE("absent fields take the model's defaults, then the plain ones") {
  const auto model = MakeServedModel();
  auto built = BuildRequest(Continue("abc"), *model);
  REQUIRE(built.ok());
  CHECK(built->request.prompt == std::vector<int32_t>{'a', 'b', 'c'});
  CHECK(built->request.sampling.temperature == 1);
  CHECK(built->request.sampling.top_p == 1);
  CHECK(built->request.sampling.logprobs == -1);
  CHECK(built->request.max_tokens == 97);  // what the context leaves
  CHECK(built->request.max_tokens_is_default);
  CHECK(built->request.stop_token_ids == std::vector<int32_t>{257});
  CHECK(built->accepted.seed() == built->request.sampling.seed);

  model->defaults.set_temperature(0.25f);
  model->defaults.set_top_p(0.5f);
  v1::GenerateRequest request = Continue("abc");
  built = BuildRequest(request, *model);
  REQUIRE(built.ok());
  CHECK(built->request.sampling.temperature == 0.25f);
  CHECK(built->request.sampling.top_p == 0.5f);
  request.mutable_sampling()->set_temperature(0);  // present, though it is the wire's default
  request.mutable_sampling()->set_seed(0);
  request.mutable_sampling()->set_ignore_eos(true);
  request.mutable_sampling()->add_stop_token_ids(7);
  request.mutable_output()->set_logprobs(0);
  built = BuildRequest(request, *model);
  REQUIRE(built.ok());
  CHECK(built->request.sampling.temperature == 0);
  CHECK(built->request.sampling.seed == 0);
  CHECK(built->request.stop_token_ids == std::vector<int32_t>{7});
  CHECK(built->request.sampling.logprobs == 0);
}

TEST_CASE("two requests without a seed get different ones") {
  const auto model = MakeServedModel();
  CHECK(BuildRequest(Hello(), *model)->request.sampling.seed !=
        BuildRequest(Hello(), *model)->request.sampling.seed);
}

}  // namespace hadal
