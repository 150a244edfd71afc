#pragma once

#include <cstdint>
#include <vector>

#include "common/model_config.h"
#include "kernels/backend.h"
#include "worker/model/model.h"
#include "worker/model/staging.h"

namespace hadal {

// What the ops of a step read beside activations, gathered on the host and brought to the backend in
// one copy. Where each array lies depends on the padded shape alone, so a replayed step finds it.
class StepInputs {
 public:
  // `max_context`: tokens of the longest sequence.
  StepInputs(Backend* backend, const Layout& layout, const ModelOptions& options,
             int64_t max_context);
  static int64_t Bytes(const Layout& layout, const ModelOptions& options, int64_t max_context);
  // The most tokens of a step, padding included.
  static int PaddedTokens(const ModelOptions& options);
  // The most slice_tokens() of a step; 0 without a fixed exchange.
  static int MaxSliceTokens(const Layout& layout, const ModelOptions& options);
  // A step of each shape, other than key 0, that Upload() can pad one to.
  static std::vector<StepBounds> ReplayShapes(const Layout& layout, const ModelOptions& options,
                                              int64_t max_context);

  // REQUIRES: batch within the bounds.
  void Upload(const Batch& batch);

  // The shape that Upload() padded the batch to, as a Backend::Replay() key; 0 when it can only be
  // run as it is: the backend does not replay, or the batch is more than one token of each sequence,
  // all of them sampled.
  uint64_t replay_key() const { return replay_key_; }

  int tokens() const { return tokens_; }                // padding included
  int decode_tokens() const { return decode_.tokens; }  // they come first
  int logits() const { return logits_; }                // padding included
  // The r-th rank of every D group brings so many tokens to a FixedExchange, from r times as many on.
  // Those after tokens() are nobody's.
  int slice_tokens() const { return slice_tokens_; }
  // Row i of the logits is that of token i.
  bool all_logits() const { return replay_key_ != 0; }

  // Backend memory.
  const int32_t* ids() const { return ids_; }                  // [tokens]
  const int32_t* positions() const { return positions_; }      // [tokens, or all slices]; -1: padding
  const int64_t* cache_rows() const { return cache_rows_; }    // [tokens]
  const int32_t* logit_tokens() const { return logit_tokens_; }  // [logits]
  const AttentionRows& decode() const { return decode_; }
  const AttentionRows& prefill() const { return prefill_; }

 private:
  void ChooseShape(const Batch& batch);
  void AddRows(const Batch& batch);

  const int slices_;            // ranks that share a group's tokens out for a fixed exchange; or 0
  const int max_replay_tokens_;
  const int64_t max_sequence_;  // tokens of the longest sequence
  Staging staging_;

  uint64_t replay_key_ = 0;
  int tokens_ = 0;
  int logits_ = 0;
  int slice_tokens_ = 0;
  int64_t max_context_ = 0;   // of this step, rounded up when it is replayed
  const int32_t* ids_ = nullptr;
  const int32_t* positions_ = nullptr;
  const int64_t* cache_rows_ = nullptr;
  const int32_t* logit_tokens_ = nullptr;
  AttentionRows decode_;
  AttentionRows prefill_;
  std::vector<AttentionRow> host_rows_;
};

}  // namespace hadal
