#pragma once

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <string>
#include <vector>

namespace hadal::testing {

// The first few elements that differ by more than `tolerance` of the reference's root mean square.
inline void PrintMismatches(const std::vector<float>& out, const std::vector<double>& ref,
                            int64_t columns, double tolerance) {
  double norm = 0;
  for (const double v : ref) norm += v * v;
  const double limit = tolerance * std::sqrt(norm / static_cast<double>(ref.size()));
  size_t wrong = 0;
  for (size_t i = 0; i < ref.size(); ++i) {
    if (std::abs(out[i] - ref[i]) <= limit) continue;
    if (++wrong > 6) continue;
    std::printf("  row %lld column %lld: %g, not %g\n", static_cast<long long>(i) / columns,
                static_cast<long long>(i) % columns, double{out[i]}, ref[i]);
  }
  std::printf("  %zu of %zu elements are off by more than %g\n", wrong, ref.size(), limit);
}

// ||out - ref|| / ||ref|| of every row of `width` elements and of all of them; prints the worst
// row.
inline bool Close(const std::string& what, const std::vector<float>& out,
                  const std::vector<double>& ref, int64_t width, double tolerance) {
  double all = 0, all_ref = 0, worst = -1;
  size_t worst_row = 0;
  const auto w = static_cast<size_t>(width);
  for (size_t row = 0; row * w < ref.size(); ++row) {
    double error = 0, norm = 0;
    for (size_t i = row * w; i < (row + 1) * w; ++i) {
      const double d = out[i] - ref[i];
      error += std::isfinite(d) ? d * d : 1e30;
      norm += ref[i] * ref[i];
    }
    all += error;
    all_ref += norm;
    const double relative = std::sqrt(error / std::max(norm, 1e-30));
    if (relative > worst) worst = relative, worst_row = row;
  }
  const double relative = std::sqrt(all / std::max(all_ref, 1e-30));
  const bool close = ref.empty() || (relative <= tolerance && worst <= 2 * tolerance);
  std::printf("%s %s: error %.2e, worst row %zu %.2e (allowed %.0e)\n", close ? "  ok  " : "  FAIL",
              what.c_str(), relative, worst_row, worst, tolerance);
  for (size_t i = 0, shown = 0; !close && i < w && shown < 8; ++i) {
    const size_t at = worst_row * w + i;
    if (std::abs(out[at] - ref[at]) <= 3 * tolerance * (std::abs(ref[at]) + 1e-3)) continue;
    std::printf("    row %zu element %zu: %g, should be %g\n", worst_row, i, double{out[at]},
                ref[at]);
    ++shown;
  }
  return close;
}

}  // namespace hadal::testing
