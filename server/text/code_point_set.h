#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "server/text/unicode_categories.h"

namespace hadal {

// A set of code points: a bit each (136 KiB), so that membership is one load.
class CodePointSet {
 public:
  CodePointSet() : bits_(CategoryTable::kLimit / 64) {}

  bool Contains(uint32_t c) const { return bits_[c / 64] >> (c % 64) & 1; }

  // REQUIRES: last < CategoryTable::kLimit.
  void Add(uint32_t first, uint32_t last);
  void AddCategories(CategoryMask mask);
  void AddAll(const CodePointSet& other);
  void Invert();

  // In order, inclusive, surrogates left out.
  std::vector<std::pair<uint32_t, uint32_t>> Ranges() const;

 private:
  std::vector<uint64_t> bits_;
};

}  // namespace hadal
