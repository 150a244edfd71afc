#include "server/frontend/intake.h"

#include <spdlog/spdlog.h>

#include <limits>

namespace hadal {

Intake::Intake(const ServedModel* model, Engine* engine, const Clock* clock)
    : model_(model),
      engine_(engine),
      clock_(clock),
      // Bounded by the requests that the engine admits: each is in the queue once at most.
      answers_(std::numeric_limits<size_t>::max(),
               [](const std::shared_ptr<Answer>& answer) { answer->HandleEvents(); }),
      requests_(kMaxQueued, [](const std::function<void()>& work) { work(); }) {}

void Intake::Stop() {
  requests_.Stop();
  answers_.Stop();
}

Status Intake::TooMany() {
  return ResourceExhausted("{} requests wait to be read, the limit; try again later", kMaxQueued);
}

int64_t Intake::DeadlineUs(const grpc::CallbackServerContext& context) const {
  const auto deadline = context.deadline();
  if (deadline == std::chrono::system_clock::time_point::max()) return INT64_MAX;
  const auto left = std::chrono::duration_cast<std::chrono::microseconds>(
      deadline - std::chrono::system_clock::now());
  return clock_->NowUs() + left.count();
}

Status Intake::Submit(uint64_t id, int64_t deadline_us, StatusOr<BuiltRequest> built,
                      const std::shared_ptr<EventWriter>& writer) {
  if (!built.ok()) return built.status();
  if (writer->cancelled()) return OkStatus();
  built->request.id = id;
  built->request.arrival_us = clock_->NowUs();
  built->request.deadline_us = deadline_us;
  built->accepted.set_request_id(fmt::format("{}", id));
  auto answer =
      std::make_shared<Answer>(&*built, writer, model_->tokenizer.get(), engine_, &answers_);
  HADAL_RETURN_IF_ERROR(engine_->Submit(std::move(built->request), answer));
  // A cancellation that came before the request was there found nothing to cancel.
  if (writer->cancelled()) engine_->Cancel(id);
  answers_.Post(std::move(answer));
  return OkStatus();
}

void Intake::Refuse(uint64_t id, const Status& status, EventWriter* writer) {
  spdlog::debug("request {} refused: {}", id, status.ToString());
  writer->Finish(status);
}

}  // namespace hadal
