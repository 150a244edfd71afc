#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace hadal {

// Unicode 16.0 general categories, in the order of make_unicode_categories.py.
enum class Category : uint8_t {
  kCn, kCc, kCf, kCo, kCs, kLu, kLl, kLt, kLm, kLo, kMn, kMc, kMe, kNd, kNl,
  kNo, kPc, kPd, kPs, kPe, kPi, kPf, kPo, kSm, kSc, kSk, kSo, kZs, kZl, kZp,
};

// Sets of categories as bits.
using CategoryMask = uint32_t;

constexpr CategoryMask MaskOf(Category first, Category last) {
  return (CategoryMask{2} << static_cast<int>(last)) - (CategoryMask{1} << static_cast<int>(first));
}
constexpr CategoryMask kLetter = MaskOf(Category::kLu, Category::kLo);
constexpr CategoryMask kMark = MaskOf(Category::kMn, Category::kMe);
constexpr CategoryMask kNumber = MaskOf(Category::kNd, Category::kNo);
constexpr CategoryMask kPunctuation = MaskOf(Category::kPc, Category::kPo);
constexpr CategoryMask kSymbol = MaskOf(Category::kSm, Category::kSo);
// White_Space is no category; it has this bit next to its category's.
constexpr CategoryMask kWhiteSpace = CategoryMask{1} << 31;

// "L" or "Lu" and so on; 0: no such category.
CategoryMask CategoryMaskByName(std::string_view name);

// The category bit of every code point, and kWhiteSpace. Made at the first use; thread-safe.
class CategoryTable {
 public:
  static constexpr uint32_t kLimit = 0x110000;

  static const CategoryTable& Get();
  // REQUIRES: code_point < kLimit.
  CategoryMask operator[](uint32_t code_point) const { return masks_[index_[code_point]]; }

 private:
  CategoryTable();

  uint8_t index_[kLimit];  // category, or kWhiteSpaceOffset more for white space
  CategoryMask masks_[64];
};

}  // namespace hadal
