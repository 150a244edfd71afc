#include "worker/model/weight_reader.h"

#include <cstring>
#include <utility>

namespace hadal {
namespace {

// Whether an array of one-, two- or four-byte numbers has a NaN, or an infinity where there are any.
bool HasNonFinite(const std::byte* data, int64_t count, DType dtype) {
  uint32_t bad = 0;
  if (dtype == DType::kF8E4M3) {
    const auto* codes = reinterpret_cast<const uint8_t*>(data);
    for (int64_t i = 0; i < count; ++i) bad |= (codes[i] & 0x7fu) == 0x7fu;
  } else if (dtype == DType::kBF16) {
    for (int64_t i = 0; i < count; ++i) {
      uint16_t bits;
      std::memcpy(&bits, data + i * 2, 2);
      bad |= (bits & 0x7f80u) == 0x7f80u;
    }
  } else {
    for (int64_t i = 0; i < count; ++i) {
      uint32_t bits;
      std::memcpy(&bits, data + i * 4, 4);
      bad |= (bits & 0x7f800000u) == 0x7f800000u;
    }
  }
  return bad != 0;
}

int64_t Columns(const TensorInfo& info) { return info.shape.size() == 2 ? info.shape[1] : 1; }

}  // namespace

WeightReader::WeightReader(const ModelConfig& config, const Checkpoint* checkpoint, Backend* backend,
                           Progress progress, int64_t total)
    : config_(config),
      checkpoint_(checkpoint),
      backend_(backend),
      planner_(*backend),
      progress_(std::move(progress)),
      total_(total) {}

WeightReader::WeightReader(const ModelConfig& config, const Backend& backend)
    : config_(config), planner_(backend) {}

void WeightReader::Count(int64_t bytes) {
  bytes_ += bytes;
  if (progress_) progress_(bytes_, total_);
}

const Checkpoint::Entry* WeightReader::Find(const std::string& name) {
  const Checkpoint::Entry* entry = checkpoint_->Find(name);
  HADAL_CHECK(entry != nullptr && entry->info.dtype, "{} was not validated", name);
  return entry;
}

// Only embedding and head are not of the model's own type.
DType WeightReader::MatrixDType(const std::string& name) const {
  if (name == "lm_head" && config_.dtype == DType::kF8E4M3) return DType::kBF16;
  return config_.dtype;
}

void WeightReader::CheckValues(const Checkpoint::Entry& entry, Range rows, Range columns) {
  const int64_t size = DTypeSize(*entry.info.dtype);
  const int64_t stride = Columns(entry.info);
  for (int64_t r = rows.begin; r < rows.end; ++r) {
    const std::byte* row = entry.data().data() + (r * stride + columns.begin) * size;
    if (!HasNonFinite(row, columns.size(), *entry.info.dtype)) continue;
    status_ = DataLoss("{}: tensor {} holds a NaN or an infinity in row {}; the file is damaged or was "
                       "written wrongly, fetch it again",
                       entry.file->path(), entry.info.name, r);
    return;
  }
}

bool WeightReader::ToSource(const MatrixPiece& piece, WeightSource* source) {
  const Checkpoint::Entry* entry = Find(piece.name + ".weight");
  CheckValues(*entry, piece.rows, piece.columns);
  if (!status_.ok()) return false;
  const int64_t stride = entry->info.shape[1];
  *source = {.data = entry->data().data() +
                     (piece.rows.begin * stride + piece.columns.begin) * DTypeSize(*entry->info.dtype),
             .dtype = *entry->info.dtype,
             .n = piece.transposed ? piece.columns.size() : piece.rows.size(),
             .k = piece.transposed ? piece.rows.size() : piece.columns.size(),
             .row_stride = stride,
             .transposed = piece.transposed};
  if (source->dtype != DType::kF8E4M3) return true;
  const Checkpoint::Entry* scale = Find(piece.name + ".weight_scale_inv");
  CheckValues(*scale, {0, scale->info.shape[0]}, {0, scale->info.shape[1]});
  source->scale = reinterpret_cast<const float*>(scale->data().data());
  source->scale_stride = scale->info.shape[1];
  source->scale_block = config_.scale_block;
  source->row_offset = piece.rows.begin;
  source->col_offset = piece.columns.begin;
  return status_.ok();
}

std::unique_ptr<PackedWeight> WeightReader::Pack(const std::vector<MatrixPieces>& matrices) {
  if (!status_.ok()) return nullptr;
  if (checkpoint_ == nullptr) {
    CountMatrices(matrices);
    return nullptr;
  }
  std::vector<StackedSource> sources(matrices.size());
  for (size_t i = 0; i < matrices.size(); ++i) {
    for (const MatrixPiece& piece : matrices[i]) {
      if (!ToSource(piece, &sources[i].emplace_back())) return nullptr;
    }
  }
  std::unique_ptr<PackedWeight> packed = backend_->Pack(sources);
  for (const MatrixPieces& pieces : matrices) Release(pieces);
  Count(packed->bytes);
  return packed;
}

void WeightReader::CountMatrices(const std::vector<MatrixPieces>& matrices) {
  int64_t n = 0;
  int64_t k = 0;
  for (const MatrixPiece& piece : matrices[0]) {
    n += piece.transposed ? piece.columns.size() : piece.rows.size();
    k = piece.transposed ? piece.rows.size() : piece.columns.size();
  }
  Count(static_cast<int64_t>(matrices.size()) *
        planner_.PackedBytes(n, k, MatrixDType(matrices[0][0].name)));
}

void WeightReader::Release(const MatrixPieces& pieces) {
  for (const MatrixPiece& piece : pieces) {
    const Checkpoint::Entry* entry = Find(piece.name + ".weight");
    const int64_t row_bytes = entry->info.shape[1] * DTypeSize(*entry->info.dtype);
    entry->file->Release(
        entry->data().subspan(piece.rows.begin * row_bytes, piece.rows.size() * row_bytes));
  }
}

std::unique_ptr<DeviceBuffer> WeightReader::Floats(const std::string& name, int64_t count) {
  const int64_t bytes = count * static_cast<int64_t>(sizeof(float));
  if (!status_.ok() || checkpoint_ == nullptr) {
    Count(bytes);
    return nullptr;
  }
  const Checkpoint::Entry* entry = Find(name);
  CheckValues(*entry, {0, entry->info.shape[0]}, {0, Columns(entry->info)});
  std::vector<float> values(count);
  if (*entry->info.dtype == DType::kF32) {
    std::memcpy(values.data(), entry->data().data(), bytes);
  } else {
    for (int64_t i = 0; i < count; ++i) {
      bf16_t bits;
      std::memcpy(&bits, entry->data().data() + i * 2, 2);
      values[i] = Bf16ToFloat(bits);
    }
  }
  auto buffer = backend_->Allocate(bytes);
  backend_->CopyToDevice(buffer->data, values.data(), bytes);
  Count(bytes);
  return buffer;
}

std::unique_ptr<DeviceBuffer> WeightReader::Table(const std::string& name, Range rows,
                                                  int64_t columns) {
  const DType dtype = config_.dtype == DType::kF32 ? DType::kF32 : DType::kBF16;
  const int64_t row_bytes = columns * DTypeSize(dtype);
  const int64_t bytes = rows.size() * row_bytes;
  if (!status_.ok() || checkpoint_ == nullptr) {
    Count(bytes);
    return nullptr;
  }
  const Checkpoint::Entry* entry = Find(name);
  CheckValues(*entry, rows, {0, columns});
  const auto slice = entry->data().subspan(rows.begin * row_bytes, bytes);
  auto buffer = backend_->Allocate(bytes);
  backend_->CopyToDevice(buffer->data, slice.data(), bytes);
  entry->file->Release(slice);
  Count(bytes);
  return buffer;
}

}  // namespace hadal
