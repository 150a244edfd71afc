// Steps that a StepRunner runs for nobody, so that its backend has recorded them.
#include "worker/runtime/step_runner.h"

namespace hadal {
namespace {

Batch Nobodys(const StepBounds& shape) {
  Batch batch;
  batch.step = shape;
  return batch;
}

}  // namespace

void StepRunner::AwaitAll() { Await(backend_->StartCopyToHost(nullptr, nullptr, 0)); }

// The smallest and the largest step run as they are, too: kernels and libraries then load, and ranks
// connect, outside of a recording.
int StepRunner::WarmUp(const Model::Progress& progress) {
  const std::vector<StepBounds> shapes = model_->replay_shapes();
  const auto count = static_cast<int>(shapes.size());
  for (int i = 0; i < count; ++i) {
    model_->Prepare(Nobodys(shapes[i]));
    if (i == 0 || i == count - 1) model_->Forward();
    backend_->Replay(model_->replay_key(), [this] { model_->Forward(); });
    AwaitAll();
    if (progress) progress(i + 1, count);
  }
  warm_ = true;
  return count;
}

// The number of rows decides, in whatever context. Which ids may be drawn is known since the server
// was joined, so this is not part of WarmUp().
void StepRunner::RecordLogits() {
  const std::vector<StepBounds> shapes = model_->replay_shapes();
  uses_.clear();
  for (const StepBounds& shape : shapes) {
    if (shape.context != shapes.front().context) continue;
    model_->Prepare(Nobodys(shape));
    StageUses({});
    if (&shape == &shapes.front()) RunLogits();
    for (const bool any_top : {false, true}) {
      for (const bool all_greedy : {false, true}) {
        any_top_ = any_top;
        all_greedy_ = all_greedy;
        backend_->Replay(LogitsKey(), [this] { RunLogits(); });
      }
    }
    AwaitAll();
  }
  recorded_limit_ = vocab_limit_;
}

}  // namespace hadal
