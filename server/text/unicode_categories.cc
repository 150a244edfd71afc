#include "server/text/unicode_categories.h"

#include <algorithm>
#include <memory>

#include "common/check.h"

namespace hadal {
namespace {

constexpr uint32_t kRuns[] = {
#include "server/text/unicode_categories.inc"
};

constexpr std::string_view kNames[] = {"Cn", "Cc", "Cf", "Co", "Cs", "Lu", "Ll", "Lt", "Lm", "Lo",
                                       "Mn", "Mc", "Me", "Nd", "Nl", "No", "Pc", "Pd", "Ps", "Pe",
                                       "Pi", "Pf", "Po", "Sm", "Sc", "Sk", "So", "Zs", "Zl", "Zp"};

constexpr uint8_t kWhiteSpaceOffset = 32;

bool IsWhiteSpace(uint32_t c, Category category) {
  return (c >= 0x09 && c <= 0x0D) || c == 0x85 || category == Category::kZs ||
         category == Category::kZl || category == Category::kZp;
}

}  // namespace

CategoryMask CategoryMaskByName(std::string_view name) {
  CategoryMask mask = 0;
  for (size_t i = 0; i < std::size(kNames); ++i) {
    if (name == kNames[i] || (name.size() == 1 && name[0] == kNames[i][0])) {
      mask |= CategoryMask{1} << i;
    }
  }
  return mask;
}

CategoryTable::CategoryTable() {
  for (uint32_t i = 0; i < 32; ++i) {
    masks_[i] = CategoryMask{1} << i;
    masks_[i + kWhiteSpaceOffset] = masks_[i] | kWhiteSpace;
  }
  uint32_t code_point = 0;
  for (const uint32_t run : kRuns) {
    const auto category = static_cast<uint8_t>(run % 32);
    for (uint32_t n = run / 32; n > 0; --n, ++code_point) {
      HADAL_CHECK(code_point < kLimit);
      const bool white = IsWhiteSpace(code_point, static_cast<Category>(category));
      index_[code_point] = static_cast<uint8_t>(category + (white ? kWhiteSpaceOffset : 0));
    }
  }
  HADAL_CHECK(code_point == kLimit);
}

const CategoryTable& CategoryTable::Get() {
  static const std::unique_ptr<const CategoryTable> table(new CategoryTable);
  return *table;
}

}  // namespace hadal
