#include "server/text/code_point_set.h"

namespace hadal {

void CodePointSet::Add(uint32_t first, uint32_t last) {
  for (uint32_t c = first; c <= last; ++c) bits_[c / 64] |= uint64_t{1} << (c % 64);
}

void CodePointSet::AddCategories(CategoryMask mask) {
  const CategoryTable& categories = CategoryTable::Get();
  for (uint32_t c = 0; c < CategoryTable::kLimit; ++c) {
    if (categories[c] & mask) bits_[c / 64] |= uint64_t{1} << (c % 64);
  }
}

void CodePointSet::AddAll(const CodePointSet& other) {
  for (size_t i = 0; i < bits_.size(); ++i) bits_[i] |= other.bits_[i];
}

void CodePointSet::Invert() {
  for (uint64_t& word : bits_) word = ~word;
}

std::vector<std::pair<uint32_t, uint32_t>> CodePointSet::Ranges() const {
  std::vector<std::pair<uint32_t, uint32_t>> ranges;
  const auto in = [&](uint32_t c) { return (c < 0xD800 || c > 0xDFFF) && Contains(c); };
  for (uint32_t c = 0; c < CategoryTable::kLimit; ++c) {
    if (!in(c)) continue;
    const uint32_t first = c;
    while (c + 1 < CategoryTable::kLimit && in(c + 1)) ++c;
    ranges.emplace_back(first, c);
  }
  return ranges;
}

}  // namespace hadal
