#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "common/layout.h"
#include "common/model_config.h"
#include "common/safetensors.h"
#include "common/status.h"
#include "common/tensor_inventory.h"

namespace hadal {

// The layout that DeepSeek's inference code loads, written by hadal-convert: one file for each of M
// ranks, with names of its own, cut for T = M, D = 1. Where it cannot cut (a size that M does not
// divide, a slice that starts inside a scale block) the pieces are those of SliceForRank, which
// only Hadal loads.

// "model.layers.3.mlp.gate_proj.weight" -> "layers.3.ffn.w1.weight".
std::string ReferenceTensorName(std::string_view hugging_face_name);

// "model0-mp2.safetensors".
std::string ConvertedFileName(int rank, int ranks);
// M of such a name with rank in [0, M); nothing for any other name.
std::optional<int> RanksOfName(const std::string& name);

// The M of a converted directory whose files are all there; 0 for any other directory. DATA_LOSS
// names files of several M, or missing ones.
StatusOr<int> ConvertedRanks(const std::string& model_dir);

// One tensor of a rank's file: its name there, and what it holds of the whole.
struct RankTensor {
  ExpectedTensor whole;
  std::string name;
  TensorSlice slice;
};
// Routed experts of other ranks are not listed.
std::vector<RankTensor> RankTensors(const ModelConfig& config, const Layout& layout);

// The checkpoint of either kind of directory as this rank reads it, validated: names are Hugging
// Face's; of a converted directory the entries hold the rank's slices. FAILED_PRECONDITION for a
// layout that the directory was not converted for. REQUIRES: ValidateLayout(config, layout).ok().
StatusOr<std::unique_ptr<Checkpoint>> OpenCheckpoint(const std::string& model_dir,
                                                     const ModelConfig& config,
                                                     const Layout& layout);

}  // namespace hadal
