#include "tests/worker/model/model_group.h"

#include <algorithm>
#include <cmath>
#include <exception>
#include <mutex>
#include <numeric>
#include <random>
#include <stdexcept>
#include <thread>

#include "common/converted_checkpoint.h"
#include "tests/worker/model/staged_communicator.h"
#include "worker/backends.h"
#include "worker/comm/thread_communicator.h"
#include "worker/model/fixed_exchange.h"

namespace hadal::testing {
namespace {

constexpr int kMaxLogits = 64;
constexpr int kExpandedTokens = 64;  // fewer than some prompts have
constexpr int kMaxRows = 64;
constexpr double kTimeoutSeconds = 60;

// Every token's logits are wanted.
StepBounds BoundsOf(const StepSpec& step) {
  StepBounds bounds{.decodes_only = true};
  for (const auto& group : step) {
    int32_t tokens = 0;
    for (const RowSpec& row : group) {
      tokens += row.count;
      bounds.context = std::max<int64_t>(bounds.context, row.start + row.count);
      bounds.decodes_only =
          bounds.decodes_only && row.kind == RowKind::kDecode && row.count == 1;
    }
    bounds.tokens = std::max(bounds.tokens, tokens);
  }
  return bounds;
}

void ThrowIfError(const Status& status) {
  if (!status.ok()) throw std::runtime_error(status.ToString());
}

}  // namespace

void RunRanks(int ranks, const std::function<void(int)>& fn) {
  std::mutex mutex;
  std::exception_ptr error;
  std::vector<std::thread> threads;
  for (int rank = 0; rank < ranks; ++rank) {
    threads.emplace_back([&, rank] {
      try {
        fn(rank);
      } catch (...) {
        std::lock_guard lock(mutex);
        if (!error) error = std::current_exception();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  if (error) std::rethrow_exception(error);
}

bool HaveCudaDevice() {
  const bool have = MakeBackend({.name = "cuda"}).ok();
  if (!have) fmt::print("skipped: no CUDA device\n");
  return have;
}

ModelGroup::ModelGroup(const std::string& model_dir, const ModelGroupOptions& options)
    : options_(options) {
  auto config = LoadModelConfig(model_dir);
  ThrowIfError(config.status());
  config_ = *config;
  const int world = options.tensor_parallel * options.data_parallel;
  comms_ = MakeThreadCommGroups(options.tensor_parallel, options.data_parallel, kTimeoutSeconds);
  backends_.resize(world);
  models_.resize(world);
  replayed_logits_.resize(world);
  RunRanks(world, [&](int rank) {
    ThrowIfError(ValidateLayout(config_, layout(rank)));
    auto checkpoint = OpenCheckpoint(model_dir, config_, layout(rank));
    ThrowIfError(checkpoint.status());
    const bool cuda = options_.isa == "cuda";
    const auto activations = ActivationsOf(options_.activations, config_);
    ThrowIfError(activations.status());
    auto backend = MakeBackend({.name = cuda ? "cuda" : "cpu",
                                .isa = cuda ? "" : options_.isa,
                                .threads = options_.threads,
                                .scale_block = config_.scale_block,
                                .activations = *activations});
    ThrowIfError(backend.status());
    backends_[rank] = std::move(*backend);
    if (cuda) {
      CommGroup& comm = comms_[rank];
      comm.act_world = std::make_shared<StagedCommunicator>(comm.world, backends_[rank].get());
      comm.act_tensor = std::make_shared<StagedCommunicator>(comm.tensor, backends_[rank].get());
    }
    const Backend& made = *backends_[rank];
    const ModelOptions model_options{
        .kv_blocks = options_.kv_blocks,
        .max_step_tokens = options_.max_step_tokens,
        .max_rows = kMaxRows,
        .max_step_logits = kMaxLogits,
        .expanded_tokens = kExpandedTokens,
        .replays = cuda ? made.replays() : options_.replays,
        .fixed_exchange =
            cuda ? FixedExchangePays(config_, layout(rank), made) : options_.fixed_exchange};
    auto model = Model::Load(config_, layout(rank), **checkpoint, backends_[rank].get(), comms_[rank],
                             model_options, nullptr);
    ThrowIfError(model.status());
    models_[rank] = std::move(*model);
  });
}

void ModelGroup::DrawBlockTables(const TokenLists& sequences, uint64_t seed) {
  std::vector<int32_t> blocks(options_.kv_blocks);
  std::iota(blocks.begin(), blocks.end(), 0);
  std::shuffle(blocks.begin(), blocks.end(), std::mt19937_64(seed));
  auto next = blocks.begin();
  tables_.clear();
  for (const auto& tokens : sequences) {
    const auto count = static_cast<int64_t>((tokens.size() + kBlockSize - 1) / kBlockSize);
    if (blocks.end() - next < count) throw std::runtime_error("too few KV blocks for this test");
    tables_.emplace_back(next, next + count);
    next += count;
  }
}

SequenceLogits ModelGroup::Run(const TokenLists& sequences, const std::vector<StepSpec>& steps,
                               uint64_t seed) {
  DrawBlockTables(sequences, seed);
  first_sequence_ += 1000;
  std::vector<SequenceLogits> logits(models_.size());
  RunRanks(static_cast<int>(models_.size()),
           [&](int rank) { RunRank(rank, sequences, steps, &logits[rank]); });
  SequenceLogits all(sequences.size());
  for (size_t s = 0; s < sequences.size(); ++s) all[s].resize(sequences[s].size());
  for (size_t rank = 0; rank < logits.size(); ++rank) {
    const size_t leader = rank - rank % options_.tensor_parallel;
    if (logits[rank] != logits[leader]) {
      throw std::runtime_error("ranks of one group have different logits");
    }
    if (rank != leader) continue;
    for (size_t s = 0; s < sequences.size(); ++s) {
      for (size_t i = 0; i < sequences[s].size(); ++i) {
        if (!logits[rank][s][i].empty()) all[s][i] = logits[rank][s][i];
      }
    }
  }
  return all;
}

void ModelGroup::RunRank(int rank, const TokenLists& sequences, const std::vector<StepSpec>& steps,
                         SequenceLogits* logits) {
  logits->resize(sequences.size());
  for (size_t s = 0; s < sequences.size(); ++s) (*logits)[s].resize(sequences[s].size());
  const int64_t vocab = config_.vocab_size;
  std::vector<float> buffer(kMaxLogits * vocab);
  for (const StepSpec& step : steps) {
    Batch batch;
    std::vector<std::vector<float>*> targets;
    for (const RowSpec& row : step[rank / options_.tensor_parallel]) {
      batch.rows.push_back({.first_token = static_cast<int32_t>(batch.tokens.size()),
                            .num_tokens = row.count,
                            .start_pos = row.start,
                            .kind = row.kind,
                            .blocks = tables_[row.sequence].data(),
                            .sequence = first_sequence_ + row.sequence});
      for (int pos = row.start; pos < row.start + row.count; ++pos) {
        batch.logit_tokens.push_back(static_cast<int32_t>(batch.tokens.size()));
        batch.tokens.push_back(sequences[row.sequence][pos]);
        batch.positions.push_back(pos);
        targets.push_back(&(*logits)[row.sequence][pos]);
      }
    }
    batch.step = BoundsOf(step);
    models_[rank]->Prepare(batch);
    if (rank == 0 && models_[rank]->replay_key() != 0) ++replayable_steps_;
    // A step of a rank alone that can be replayed is; its logits are then all there.
    const bool replayed = world() == 1 && models_[rank]->replay_key() != 0;
    if (replayed) {
      backends_[rank]->Replay(models_[rank]->replay_key(), [&] {
        models_[rank]->Forward();
        replayed_logits_[rank] = models_[rank]->Logits(0, models_[rank]->logit_rows());
      });
    } else {
      models_[rank]->Forward();
    }
    for (int first = 0; first < static_cast<int>(targets.size()); first += kMaxLogits) {
      const int count = std::min(kMaxLogits, static_cast<int>(targets.size()) - first);
      const float* logits = replayed ? replayed_logits_[rank] + first * vocab
                                     : models_[rank]->Logits(first, count);
      backends_[rank]->CopyToHost(buffer.data(), logits,
                                  count * vocab * int64_t{sizeof(float)});
      for (int i = 0; i < count; ++i) {
        targets[first + i]->assign(buffer.begin() + i * vocab, buffer.begin() + (i + 1) * vocab);
      }
    }
  }
}

double LogProb(const std::vector<float>& logits, int32_t token) {
  const double top = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (float x : logits) sum += std::exp(x - top);
  return logits[token] - top - std::log(sum);
}

int32_t ArgMax(const std::vector<float>& logits) {
  return static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

}  // namespace hadal::testing
