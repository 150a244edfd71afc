#include <algorithm>
#include <cmath>
#include <numbers>

#include "common/model_config.h"

namespace hadal {

float ModelConfig::SoftmaxScale() const {
  double scale = 1.0 / std::sqrt(static_cast<double>(qk_head_dim()));
  if (yarn && yarn->factor > 1) {
    const double m = 0.1 * yarn->mscale_all_dim * std::log(yarn->factor) + 1.0;
    scale *= m * m;
  }
  return static_cast<float>(scale);
}

// Computed in double and rounded once: at position 160,000 an error of 1e-7 in theta would turn a
// pair by a hundredth of a radian.
std::vector<float> ModelConfig::RopeFrequencies() const {
  const auto width = static_cast<double>(qk_rope_head_dim);
  const double base = rope_theta;
  double low = 0;
  double high = 0;
  if (yarn) {
    // The pair that turns n times over the original context.
    const auto pair_of = [&](double n) {
      return width *
             std::log(static_cast<double>(yarn->original_seq_len) / (2 * std::numbers::pi * n)) /
             (2 * std::log(base));
    };
    low = std::max(std::floor(pair_of(yarn->beta_fast)), 0.0);
    high = std::min(std::ceil(pair_of(yarn->beta_slow)), width - 1);
    if (low == high) high += 0.001;
  }
  std::vector<float> theta(static_cast<size_t>(qk_rope_head_dim / 2));
  for (size_t i = 0; i < theta.size(); ++i) {
    const double speed = std::pow(base, -2.0 * static_cast<double>(i) / width);
    if (!yarn) {
      theta[i] = static_cast<float>(speed);
      continue;
    }
    const double slow_part = std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0);
    theta[i] = static_cast<float>(speed / yarn->factor * slow_part + speed * (1 - slow_part));
  }
  return theta;
}

}  // namespace hadal
