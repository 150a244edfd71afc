#include "server/frontend/intake.h"

#include <grpc/support/time.h>
#include <spdlog/spdlog.h>

#include <limits>

namespace hadal {

constexpr int64_t kFarAwaySeconds = int64_t{10} * 365 * 24 * 3600;

Intake::Intake(const ServedModel* model, Engine* engine, const Clock* clock,
               const IntakeLimits& limits)
    : model_(model),
      engine_(engine),
      clock_(clock),
      limits_(limits),
      // Bounded by the requests that the engine admits: each is in the queue once at most.
      answers_(std::numeric_limits<size_t>::max(),
               [](const std::shared_ptr<Answer>& answer) { answer->HandleEvents(); }),
      requests_(limits.queued_requests, [](const std::function<void()>& work) { work(); }) {}

void Intake::Stop() {
  requests_.Stop();
  answers_.Stop();
}

std::function<void()> Intake::CancelOf(uint64_t id) {
  ++open_calls_;
  const std::shared_ptr<void> open(nullptr, [this](void*) { --open_calls_; });
  return [this, id, open] { engine_->Cancel(id); };
}

bool Intake::Queue(size_t bytes, std::function<void()> work) {
  const bool fits = (queued_bytes_ += bytes) <= limits_.queued_bytes;
  if (fits && requests_.Post([this, bytes, work = std::move(work)] {
        queued_bytes_ -= bytes;
        work();
      })) {
    return true;
  }
  queued_bytes_ -= bytes;
  return false;
}

Status Intake::TooMany() const {
  return ResourceExhausted("the requests that wait to be read have reached the limit, {} or {} bytes of "
                           "them; try again later", limits_.queued_requests, limits_.queued_bytes);
}

int64_t Intake::DeadlineUs(const grpc::CallbackServerContext& context) const {
  // Not deadline(): its nanoseconds overflow after the year 2262, which a header may name.
  const gpr_timespec deadline = context.raw_deadline();
  const gpr_timespec left = gpr_time_sub(deadline, gpr_now(deadline.clock_type));
  if (left.tv_sec > kFarAwaySeconds) return INT64_MAX;
  return clock_->NowUs() + left.tv_sec * 1'000'000 + left.tv_nsec / 1000;
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
