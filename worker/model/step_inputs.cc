#include "worker/model/step_inputs.h"

#include <algorithm>
#include <bit>

namespace hadal {
namespace {

// Beyond so many sequences a step is long enough that its launches do not show.
constexpr int kMaxReplayRows = 512;
constexpr int64_t kMinReplayContext = 512;
// The blocks of one longer sequence are more than any device has cores: a closer bound changes nothing.
constexpr int64_t kLongContext = 16384;

int64_t Blocks(int64_t tokens) { return (tokens + kBlockSize - 1) / kBlockSize; }

// Few shapes, so that few are recorded, and little padding, since padded rows cost attention blocks
// and columns of products, but no experts.
int PaddedRows(int rows) {
  if (rows <= 4) return rows <= 2 ? rows : 4;
  const int step = rows <= 64 ? 8 : 32;
  return (rows + step - 1) / step * step;
}

int64_t PaddedContext(int64_t context, int64_t max_context) {
  const int64_t bounded = context > kLongContext ? max_context : context;
  return std::max(kMinReplayContext, static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(bounded))));
}

int ReplayTokens(const ModelOptions& options) {
  return std::min({options.max_rows, options.max_step_tokens, kMaxReplayRows});
}

int Slices(const Layout& layout, const ModelOptions& options) {
  return options.fixed_exchange ? layout.tensor_parallel : 0;
}

// What an ExpertExchange does is decided on the host and cannot be replayed.
int MaxReplayTokens(const Layout& layout, const ModelOptions& options) {
  const bool fixed = layout.data_parallel == 1 || options.fixed_exchange;
  return options.replays && fixed ? ReplayTokens(options) : 0;
}

}  // namespace

int StepInputs::PaddedTokens(const ModelOptions& options) {
  return std::max(options.max_step_tokens, PaddedRows(ReplayTokens(options)));
}

int StepInputs::MaxSliceTokens(const Layout& layout, const ModelOptions& options) {
  const int slices = Slices(layout, options);
  return slices == 0 ? 0 : (PaddedTokens(options) + slices - 1) / slices;
}

int64_t StepInputs::Bytes(const Layout& layout, const ModelOptions& options, int64_t max_context) {
  const int64_t rows = PaddedRows(options.max_rows);
  const int64_t tokens = PaddedTokens(options);
  const int64_t sliced = int64_t{MaxSliceTokens(layout, options)} * layout.tensor_parallel;
  return 2 * Staging::Bytes<int32_t>(tokens) + Staging::Bytes<int32_t>(std::max(tokens, sliced)) +
         Staging::Bytes<int64_t>(tokens) + Staging::Bytes<AttentionRow>(rows) +
         Staging::Bytes<int32_t>(rows * Blocks(max_context));
}

std::vector<StepBounds> StepInputs::ReplayShapes(const Layout& layout, const ModelOptions& options,
                                                 int64_t max_context) {
  std::vector<StepBounds> shapes;
  const int most = MaxReplayTokens(layout, options);
  for (int64_t context = 0; context < max_context;) {
    context = PaddedContext(context + 1, max_context);
    for (int tokens = 1; tokens <= most; ++tokens) {
      if (tokens < most && PaddedRows(tokens + 1) == PaddedRows(tokens)) continue;
      shapes.push_back({.tokens = tokens,
                        .context = std::min(context, max_context),
                        .decodes_only = true});
    }
  }
  return shapes;
}

StepInputs::StepInputs(Backend* backend, const Layout& layout, const ModelOptions& options,
                       int64_t max_context)
    : slices_(Slices(layout, options)),
      max_replay_tokens_(MaxReplayTokens(layout, options)),
      max_sequence_(max_context),
      staging_(backend, Bytes(layout, options, max_context)) {}

// All groups take the shape of the largest: where they exchange tokens in fixed numbers they have to.
void StepInputs::ChooseShape(const Batch& batch) {
  const StepBounds& bounds = batch.step;
  HADAL_CHECK(static_cast<int>(batch.tokens.size()) <= bounds.tokens);
  replay_key_ = 0;
  tokens_ = static_cast<int>(batch.tokens.size());
  logits_ = static_cast<int>(batch.logit_tokens.size());
  if (bounds.decodes_only && bounds.tokens > 0 && bounds.tokens <= max_replay_tokens_) {
    tokens_ = logits_ = PaddedRows(bounds.tokens);
    max_context_ = PaddedContext(bounds.context, max_sequence_);
    replay_key_ = static_cast<uint64_t>(max_context_) << 16 | static_cast<uint64_t>(tokens_);
  }
  const int largest = std::max(tokens_, bounds.tokens);
  slice_tokens_ = slices_ > 0 ? (largest + slices_ - 1) / slices_ : 0;
}

void StepInputs::Upload(const Batch& batch) {
  ChooseShape(batch);
  staging_.Clear();
  const auto count = static_cast<int>(batch.tokens.size());
  int32_t* ids = staging_.Place(tokens_, &ids_);
  std::copy(batch.tokens.begin(), batch.tokens.end(), ids);
  std::fill(ids + count, ids + tokens_, 0);
  const int all_positions = std::max(tokens_, slice_tokens_ * slices_);
  int32_t* positions = staging_.Place(all_positions, &positions_);
  std::copy(batch.positions.begin(), batch.positions.end(), positions);
  std::fill(positions + count, positions + all_positions, -1);
  int64_t* cache_rows = staging_.Place(tokens_, &cache_rows_);
  for (const BatchRow& row : batch.rows) {
    for (int32_t pos = row.start_pos; pos < row.start_pos + row.num_tokens; ++pos) {
      *cache_rows++ = int64_t{row.blocks[pos / kBlockSize]} * kBlockSize + pos % kBlockSize;
    }
  }
  std::fill_n(cache_rows, tokens_ - count, 0);
  int32_t* logit_tokens = staging_.Place(logits_, &logit_tokens_);
  std::copy(batch.logit_tokens.begin(), batch.logit_tokens.end(), logit_tokens);
  for (auto i = static_cast<int>(batch.logit_tokens.size()); i < logits_; ++i) logit_tokens[i] = i;
  AddRows(batch);
  staging_.Upload();
}

// Rows, decode before prefill, and after them their block tables, of whatever length.
void StepInputs::AddRows(const Batch& batch) {
  host_rows_.clear();
  decode_ = prefill_ = AttentionRows{};
  int32_t first_block = 0;
  for (const BatchRow& row : batch.rows) {
    AttentionRows& rows = row.kind == RowKind::kDecode ? decode_ : prefill_;
    const int64_t end = row.start_pos + row.num_tokens;
    host_rows_.push_back({row.first_token, row.num_tokens, row.start_pos, first_block});
    first_block += static_cast<int32_t>(Blocks(end));
    ++rows.num_rows;
    rows.tokens += row.num_tokens;
    rows.max_row_tokens = std::max(rows.max_row_tokens, row.num_tokens);
    rows.max_context = std::max(rows.max_context, end);
  }
  if (replay_key_ != 0) {
    host_rows_.resize(tokens_);
    decode_.num_rows = decode_.tokens = tokens_;
    decode_.max_row_tokens = 1;  // also of a group without sequences, which may have some when it replays
    decode_.max_context = max_context_;
  }
  const AttentionRow* rows = nullptr;
  std::copy(host_rows_.begin(), host_rows_.end(),
            staging_.Place(static_cast<int64_t>(host_rows_.size()), &rows));
  decode_.rows = rows;
  prefill_.rows = rows + decode_.num_rows;
  if (replay_key_ == 0) decode_.host_rows = host_rows_.data();
  prefill_.host_rows = host_rows_.data() + decode_.num_rows;
  const int32_t* tables = nullptr;
  int32_t* table = staging_.Place(first_block, &tables);
  for (const BatchRow& row : batch.rows) {
    table = std::copy_n(row.blocks, Blocks(row.start_pos + row.num_tokens), table);
  }
  decode_.block_tables = prefill_.block_tables = tables;
}

}  // namespace hadal
