#include <algorithm>

#include "hadal/v1/model.grpc.pb.h"
#include "server/frontend/services.h"

namespace hadal {
namespace {

class ModelService final : public v1::ModelService::CallbackService {
 public:
  ModelService(const ServedModel* model, const Engine* engine) : model_(*model), engine_(*engine) {}

  grpc::ServerUnaryReactor* GetModel(grpc::CallbackServerContext* context,
                                     const v1::GetModelRequest*,
                                     v1::GetModelResponse* response) override {
    Describe(response);
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    reactor->Finish(grpc::Status::OK);
    return reactor;
  }

 private:
  void Describe(v1::GetModelResponse* out) const {
    out->set_model(model_.name);
    out->set_architecture(model_.config.architecture);
    out->set_context_length(model_.context_length);
    out->set_vocab_size(static_cast<int32_t>(model_.config.vocab_size));
    out->set_has_tokenizer(model_.tokenizer != nullptr);
    if (model_.chat_template != nullptr) {
      out->set_chat_template(std::string(model_.chat_template->name()));
    }
    *out->mutable_defaults() = model_.defaults;
    out->mutable_eos_token_ids()->Add(model_.config.eos_ids.begin(), model_.config.eos_ids.end());
    out->set_fingerprint(model_.fingerprint);

    const EngineStats stats = engine_.stats();
    out->set_ready(stats.ready);
    out->set_draining(stats.draining);
    out->set_running_requests(stats.running);
    out->set_waiting_requests(stats.waiting);
    out->set_generated_tokens(stats.generated_tokens);
    if (stats.epoch == 0) return;
    v1::WorkerGroupInfo* group = out->add_worker_groups();
    group->set_epoch(stats.epoch);
    group->set_tensor_parallel(stats.capacity.tensor_parallel);
    group->set_data_parallel(stats.capacity.data_parallel);
    group->set_kv_blocks(stats.capacity.kv_blocks);
    group->set_free_kv_blocks(static_cast<int32_t>(stats.free_blocks));
  }

  const ServedModel& model_;
  const Engine& engine_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeModelService(const ServedModel* model, const Engine* engine) {
  return std::make_unique<ModelService>(model, engine);
}

}  // namespace hadal
