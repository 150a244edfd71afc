#include "worker/model/weight_reader.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <thread>
#include <utility>

#include "common/threads.h"

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

// Of these rows the first that HasNonFinite(); -1: none.
int64_t FirstBadRow(const Checkpoint::Entry& entry, Range rows, Range columns) {
  for (int64_t r = rows.begin; r < rows.end; ++r) {
    if (HasNonFinite(entry.At(r, columns.begin), columns.size(), *entry.info.dtype)) return r;
  }
  return -1;
}

// What one thread checks at a time.
constexpr int64_t kPartBytes = int64_t{1} << 20;
constexpr unsigned kMaxThreads = 8;

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
  if (entry.random) return;
  const int64_t row = FirstBadRow(entry, rows, columns);
  if (row < 0) return;
  status_ = DataLoss("{}: tensor {} holds a NaN or an infinity in row {}; the file is damaged or was "
                     "written wrongly, fetch it again",
                     entry.file->path(), entry.info.name, row);
}

// Every weight that is read passes here, which takes one core longer than bringing them to a device.
void WeightReader::CheckMatrices(const std::vector<MatrixPieces>& matrices) {
  struct Part {
    const Checkpoint::Entry* entry;
    Range rows;
    Range columns;
  };
  std::vector<Part> parts;
  for (const MatrixPieces& pieces : matrices) {
    for (const MatrixPiece& piece : pieces) {
      const Checkpoint::Entry* entry = Find(piece.name + ".weight");
      if (entry->random) continue;
      const int64_t row_bytes = piece.columns.size() * DTypeSize(*entry->info.dtype);
      const int64_t rows = std::max<int64_t>(1, kPartBytes / std::max<int64_t>(row_bytes, 1));
      for (int64_t r = piece.rows.begin; r < piece.rows.end; r += rows) {
        parts.push_back({entry, {r, std::min(r + rows, piece.rows.end)}, piece.columns});
      }
    }
  }
  std::vector<char> bad(parts.size());
  std::atomic<size_t> next{0};
  const auto work = [&] {
    for (size_t i; (i = next++) < parts.size();) {
      bad[i] = FirstBadRow(*parts[i].entry, parts[i].rows, parts[i].columns) >= 0;
    }
  };
  const size_t cores = std::min(kMaxThreads, std::max(1u, std::thread::hardware_concurrency()));
  RunOnThreads(static_cast<int>(std::min(cores, parts.size())), work);
  const auto first = std::find(bad.begin(), bad.end(), 1) - bad.begin();
  if (first == std::ssize(bad)) return;
  CheckValues(*parts[first].entry, parts[first].rows, parts[first].columns);
}

bool WeightReader::ToSource(const MatrixPiece& piece, WeightSource* source) {
  const Checkpoint::Entry* entry = Find(piece.name + ".weight");
  *source = {.data = entry->At(piece.rows.begin, piece.columns.begin),
             .dtype = *entry->info.dtype,
             .n = piece.transposed ? piece.columns.size() : piece.rows.size(),
             .k = piece.transposed ? piece.rows.size() : piece.columns.size(),
             .row_stride = entry->columns.size(),
             .transposed = piece.transposed};
  if (entry->random) {
    source->random = entry->random;
    source->random->first += entry->IndexOf(piece.rows.begin, piece.columns.begin);
  }
  if (source->dtype != DType::kF8E4M3) return true;
  const Checkpoint::Entry* scale = Find(piece.name + ".weight_scale_inv");
  CheckValues(*scale, scale->rows, scale->columns);
  source->scale = reinterpret_cast<const float*>(scale->data().data());
  source->scale_stride = scale->columns.size();
  source->scale_block = config_.scale_block;
  source->row_offset = piece.rows.begin - scale->rows.begin * config_.scale_block;
  source->col_offset = piece.columns.begin - scale->columns.begin * config_.scale_block;
  return status_.ok();
}

std::unique_ptr<PackedWeight> WeightReader::Pack(const std::vector<MatrixPieces>& matrices,
                                                 WeightUse use) {
  if (!status_.ok()) return nullptr;
  if (checkpoint_ == nullptr) {
    CountMatrices(matrices, use);
    return nullptr;
  }
  CheckMatrices(matrices);
  if (!status_.ok()) return nullptr;
  std::vector<StackedSource> sources(matrices.size());
  for (size_t i = 0; i < matrices.size(); ++i) {
    for (const MatrixPiece& piece : matrices[i]) {
      if (!ToSource(piece, &sources[i].emplace_back())) return nullptr;
    }
  }
  std::unique_ptr<PackedWeight> packed = backend_->Pack(sources, use);
  for (const MatrixPieces& pieces : matrices) Release(pieces);
  Count(packed->bytes);
  return packed;
}

void WeightReader::CountMatrices(const std::vector<MatrixPieces>& matrices, WeightUse use) {
  int64_t n = 0;
  int64_t k = 0;
  for (const MatrixPiece& piece : matrices[0]) {
    n += piece.transposed ? piece.columns.size() : piece.rows.size();
    k = piece.transposed ? piece.rows.size() : piece.columns.size();
  }
  Count(static_cast<int64_t>(matrices.size()) *
        planner_.PackedBytes(n, k, MatrixDType(matrices[0][0].name), use));
}

void WeightReader::Release(const MatrixPieces& pieces) {
  for (const MatrixPiece& piece : pieces) {
    const Checkpoint::Entry* entry = Find(piece.name + ".weight");
    const int64_t row_bytes = entry->columns.size() * DTypeSize(*entry->info.dtype);
    entry->file->Release({entry->At(piece.rows.begin, entry->columns.begin),
                          static_cast<size_t>(piece.rows.size() * row_bytes)});
  }
}

std::unique_ptr<DeviceBuffer> WeightReader::Floats(const std::string& name, int64_t count) {
  const int64_t bytes = count * static_cast<int64_t>(sizeof(float));
  if (!status_.ok() || checkpoint_ == nullptr) {
    Count(bytes);
    return nullptr;
  }
  const Checkpoint::Entry* entry = Find(name);
  CheckValues(*entry, entry->rows, entry->columns);
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
  const std::span slice(entry->At(rows.begin, 0), static_cast<size_t>(bytes));
  auto buffer = backend_->Allocate(bytes);
  backend_->CopyToDevice(buffer->data, slice.data(), bytes);
  entry->file->Release(slice);
  Count(bytes);
  return buffer;
}

}  // namespace hadal
