#include "server/text/bpe_merges.h"

#include <algorithm>
#include <bit>
#include <functional>
#include <limits>
#include <queue>

#include "common/check.h"

namespace hadal {
namespace {

constexpr uint64_t kEmpty = std::numeric_limits<uint64_t>::max();
constexpr uint32_t kNoRank = std::numeric_limits<uint32_t>::max();
// Up to here scanning all pairs for the lowest rank is faster than a heap.
constexpr size_t kShortPiece = 48;

uint64_t PairOf(int32_t left, int32_t right) {
  return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}

uint64_t HashOf(uint64_t pair) {
  pair *= 0x9E3779B97F4A7C15u;
  return pair ^ pair >> 29;
}

}  // namespace

BpeMerges::BpeMerges(const std::vector<MergeRule>& rules, const std::vector<int32_t>& byte_ids)
    : none_{kEmpty, kNoRank, -1}, byte_ids_(byte_ids) {
  HADAL_CHECK(byte_ids_.size() == 256 && rules.size() < kNoRank);
  slots_.assign(std::bit_ceil(rules.size() * 2 + 2), none_);
  mask_ = slots_.size() - 1;
  for (size_t rank = 0; rank < rules.size(); ++rank) {
    const uint64_t pair = PairOf(rules[rank].left, rules[rank].right);
    uint64_t at = HashOf(pair) & mask_;
    while (slots_[at].pair != kEmpty && slots_[at].pair != pair) at = (at + 1) & mask_;
    slots_[at] = {pair, static_cast<uint32_t>(rank), rules[rank].result};
  }
}

const BpeMerges::Slot& BpeMerges::Find(int32_t left, int32_t right) const {
  const uint64_t pair = PairOf(left, right);
  for (uint64_t at = HashOf(pair) & mask_;; at = (at + 1) & mask_) {
    if (slots_[at].pair == pair) return slots_[at];
    if (slots_[at].pair == kEmpty) return none_;
  }
}

void BpeMerges::Encode(std::string_view piece, std::vector<int32_t>* ids) const {
  const size_t begin = ids->size();
  for (const char c : piece) {
    const int32_t id = byte_ids_[static_cast<uint8_t>(c)];
    if (id >= 0) ids->push_back(id);
  }
  const size_t count = ids->size() - begin;
  if (count < 2) return;
  if (count <= kShortPiece) {
    MergeShort(ids, begin);
  } else {
    MergeLong(ids, begin);
  }
}

void BpeMerges::MergeShort(std::vector<int32_t>* ids, size_t begin) const {
  int32_t* id = ids->data() + begin;
  size_t count = ids->size() - begin;
  const Slot* rule[kShortPiece];  // of the pair (i, i + 1)
  for (size_t i = 0; i + 1 < count; ++i) rule[i] = &Find(id[i], id[i + 1]);
  while (count > 1) {
    size_t best = 0;
    for (size_t i = 1; i + 1 < count; ++i) {
      if (rule[i]->rank < rule[best]->rank) best = i;
    }
    if (rule[best]->rank == kNoRank) break;
    id[best] = rule[best]->result;
    std::copy(id + best + 2, id + count, id + best + 1);
    if (best + 2 < count) std::copy(rule + best + 2, rule + count - 1, rule + best + 1);
    --count;
    if (best > 0) rule[best - 1] = &Find(id[best - 1], id[best]);
    if (best + 1 < count) rule[best] = &Find(id[best], id[best + 1]);
  }
  ids->resize(begin + count);
}

void BpeMerges::MergeLong(std::vector<int32_t>* ids, size_t begin) const {
  struct Symbol {
    int32_t id;  // -1: merged into an earlier symbol
    uint32_t previous;
    uint32_t next;
    const Slot* rule;  // with the next symbol
  };
  const auto count = static_cast<uint32_t>(ids->size() - begin);
  std::vector<Symbol> symbols(count);
  // rank << 32 | position: the smallest is the lowest rank, leftmost on ties. Entries whose symbol
  // has changed since are skipped when they come up.
  std::vector<uint64_t> storage;
  storage.reserve(count);
  std::priority_queue<uint64_t, std::vector<uint64_t>, std::greater<>> queue(std::greater<>(),
                                                                             std::move(storage));
  const auto update = [&](uint32_t at) {
    Symbol& symbol = symbols[at];
    symbol.rule = symbol.next < count ? &Find(symbol.id, symbols[symbol.next].id) : &none_;
    if (symbol.rule->rank != kNoRank) queue.push(uint64_t{symbol.rule->rank} << 32 | at);
  };
  for (uint32_t i = 0; i < count; ++i) symbols[i] = {(*ids)[begin + i], i - 1, i + 1, &none_};
  for (uint32_t i = 0; i < count; ++i) update(i);
  while (!queue.empty()) {
    const uint64_t top = queue.top();
    queue.pop();
    const auto at = static_cast<uint32_t>(top);
    Symbol& symbol = symbols[at];
    if (symbol.id < 0 || symbol.rule->rank != top >> 32) continue;
    symbol.id = symbol.rule->result;
    symbols[symbol.next].id = -1;
    symbol.next = symbols[symbol.next].next;
    if (symbol.next < count) symbols[symbol.next].previous = at;
    update(at);
    if (at > 0) update(symbol.previous);
  }
  ids->resize(begin);
  for (uint32_t at = 0; at < count; at = symbols[at].next) ids->push_back(symbols[at].id);
}

}  // namespace hadal
