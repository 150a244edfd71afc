#include "tools/progress.h"

#include <fmt/format.h>

#include <algorithm>

namespace hadal {
namespace {

std::string TimeText(double seconds) {
  const auto s = static_cast<int64_t>(seconds);
  if (s < 60) return fmt::format("{} s", s);
  if (s < 3600) return fmt::format("{} min {} s", s / 60, s % 60);
  return fmt::format("{} h {} min", s / 3600, s / 60 % 60);
}

}  // namespace

std::string ByteText(uint64_t bytes) {
  constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  auto value = static_cast<double>(bytes);
  size_t unit = 0;
  while (value >= 1024 && unit + 1 < std::size(kUnits)) {
    value /= 1024;
    ++unit;
  }
  return unit == 0 ? fmt::format("{} B", bytes) : fmt::format("{:.2f} {}", value, kUnits[unit]);
}

double Progress::seconds() const {
  return std::chrono::duration<double>(Clock::now() - start_).count();
}

void Progress::Add(uint64_t bytes) {
  const uint64_t done = done_ += bytes;
  const std::unique_lock lock(mutex_, std::try_to_lock);
  if (!lock || !report_) return;
  const Clock::time_point now = Clock::now();
  if (now - last_report_ < std::chrono::seconds(2)) return;
  last_report_ = now;
  const double rate = static_cast<double>(done) / std::max(seconds(), 1e-3);
  const double left = static_cast<double>(total_ - std::min(done, total_)) / std::max(rate, 1.0);
  report_(fmt::format("{} of {} ({} %), {:.2f} GB/s, {} left", ByteText(done), ByteText(total_),
                      done * 100 / std::max<uint64_t>(total_, 1), rate / 1e9, TimeText(left)));
}

}  // namespace hadal
