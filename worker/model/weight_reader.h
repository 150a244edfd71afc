#pragma once

#include <functional>
#include <span>
#include <string>
#include <vector>

#include "common/layout.h"
#include "common/model_config.h"
#include "common/safetensors.h"
#include "common/status.h"
#include "kernels/backend.h"

namespace hadal {

// A rectangle of one checkpoint matrix, given by its name without ".weight".
struct MatrixPiece {
  std::string name;
  Range rows;
  Range columns;
  bool transposed = false;
};

// Of one matrix, stacked along the outputs.
using MatrixPieces = std::vector<MatrixPiece>;

// Reads slices of a checkpoint into a backend, or, without a checkpoint, only counts what they would
// occupy. The first error sticks: later calls do nothing. One thread.
class WeightReader {
 public:
  using Progress = std::function<void(int64_t done, int64_t total)>;

  // `total` is only for progress.
  WeightReader(const ModelConfig& config, const Checkpoint* checkpoint, Backend* backend,
               Progress progress, int64_t total);
  // Counts only; returns null pointers.
  WeightReader(const ModelConfig& config, const Backend& backend);

  // Matrices of one shape.
  std::unique_ptr<PackedWeight> Pack(const std::vector<MatrixPieces>& matrices,
                                     WeightUse use = WeightUse::kStream);
  // A small tensor as floats: norms, router. `name` is complete.
  std::unique_ptr<DeviceBuffer> Floats(const std::string& name, int64_t count);
  // Rows of a table as they are stored.
  std::unique_ptr<DeviceBuffer> Table(const std::string& name, Range rows, int64_t columns);

  int64_t bytes() const { return bytes_; }
  const Status& status() const { return status_; }

 private:
  const Checkpoint::Entry* Find(const std::string& name);
  bool ToSource(const MatrixPiece& piece, WeightSource* source);
  void CheckMatrices(const std::vector<MatrixPieces>& matrices);
  void CountMatrices(const std::vector<MatrixPieces>& matrices, WeightUse use);
  // Their bytes will not be read again.
  void Release(const MatrixPieces& pieces);
  void CheckValues(const Checkpoint::Entry& entry, Range rows, Range columns);
  void Count(int64_t bytes);
  DType MatrixDType(const std::string& name) const;

  const ModelConfig& config_;
  const Checkpoint* const checkpoint_ = nullptr;
  Backend* const backend_ = nullptr;
  const Backend& planner_;
  Progress progress_;
  int64_t total_ = 0;
  int64_t bytes_ = 0;
  Status status_;
};

}  // namespace hadal
