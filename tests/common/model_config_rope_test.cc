#include <cmath>
#include <nlohmann/json.hpp>

#include "common/model_config.h"
#include "tests/common/hf_configs.h"
#include "tests/common/parsed_config.h"
#include "tests/support/catch.h"

namespace hadal {
namespace {
using nlohmann::json;
using testing::ParsedConfig;
using testing::Released;

TEST_CASE("rotation speeds and softmax scale") {
  const std::vector<double> appendix = {1,
                                        0.74989421,
                                        0.56234133,
                                        0.4216965,
                                        0.31622777,
                                        0.23713737,
                                        0.17782794,
                                        0.13335214,
                                        0.1,
                                        0.074989421,
                                        0.056234133,
                                        0.039006927,
                                        0.02687936,
                                        0.018378146,
                                        0.012447956,
                                        0.008334509,
                                        0.0055,
                                        0.0035619975,
                                        0.0022493653,
                                        0.0013705136,
                                        7.9056942e-4,
                                        4.149904e-4,
                                        1.7782794e-4,
                                        3.3338036e-5,
                                        2.5e-5,
                                        1.8747355e-5,
                                        1.4058533e-5,
                                        1.0542413e-5,
                                        7.9056942e-6,
                                        5.9284343e-6,
                                        4.4456985e-6,
                                        3.3338036e-6};
  const std::vector<float> theta = Released("v3").RopeFrequencies();
  REQUIRE(theta.size() == appendix.size());
  for (size_t i = 0; i < theta.size(); ++i) CHECK(theta[i] == Approx(appendix[i]).epsilon(1e-6));
  CHECK(Released("v3").SoftmaxScale() == Approx(0.1352338).epsilon(1e-6));
  CHECK(Released("v2_lite").SoftmaxScale() == Approx(0.1147214).epsilon(1e-6));

  ModelConfig plain = Released("v2_lite");
  plain.yarn.reset();
  CHECK(plain.SoftmaxScale() == Approx(0.0721688).epsilon(1e-6));
  CHECK(plain.RopeFrequencies()[31] == Approx(std::pow(1e4, -62.0 / 64)).epsilon(1e-6));
  plain.yarn = YarnConfig{.factor = 1};
  ModelConfig none = plain;
  none.yarn.reset();
  CHECK(plain.SoftmaxScale() == none.SoftmaxScale());
  CHECK(plain.RopeFrequencies() == none.RopeFrequencies());

  // Kimi-K2: beta 1/1 makes a step between pairs 19 and 20.
  json config = testing::HfConfig("kimi_k2");
  const ModelConfig kimi = ParsedConfig(config);
  CHECK(kimi.SoftmaxScale() == Approx(0.1308608).epsilon(1e-6));
  CHECK(kimi.RopeFrequencies()[19] == Approx(std::pow(5e4, -38.0 / 64)).epsilon(1e-6));
  CHECK(kimi.RopeFrequencies()[20] == Approx(std::pow(5e4, -40.0 / 64) / 32).epsilon(1e-6));
  config["rope_scaling"]["factor"] = 64;
  CHECK(ParsedConfig(config).SoftmaxScale() == Approx(0.1446796).epsilon(1e-6));
  config["rope_scaling"]["factor"] = 1;
  CHECK_FALSE(ParsedConfig(config).yarn);
}

}  // namespace
}  // namespace hadal
