#include "tools/tensor_work.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "common/rounding.h"
#include "tools/fp8_blocks.h"

namespace hadal {
namespace {

template <typename T>
T Load(const std::byte* at) {
  T value;
  std::memcpy(&value, at, sizeof(T));
  return value;
}

// Consecutive bytes of a source tensor from `begin`.
Work CopyBytes(const Checkpoint::Entry& source, uint64_t begin, uint64_t size, size_t target) {
  return {.rows = static_cast<int64_t>(size),
          .row_bytes = 1,
          .produce = [&source, begin, target](Range rows, Production* out) {
            const auto offset = static_cast<uint64_t>(rows.begin);
            HADAL_ASSIGN_OR_RETURN(const auto bytes, out->Read(source, begin + offset,
                                                               static_cast<uint64_t>(rows.size())));
            out->pieces.push_back({target, offset, bytes});
            return OkStatus();
          }};
}

// Some columns of every row. Whole rows are read: their pages would come anyway.
Work CopyColumns(const Checkpoint::Entry& source, TensorSlice slice, size_t target) {
  const uint64_t element = static_cast<uint64_t>(ElementBits(source.info.dtype_name)) / 8;
  const uint64_t stride = static_cast<uint64_t>(source.columns.size()) * element;
  const uint64_t first = static_cast<uint64_t>(slice.columns.begin) * element;
  const uint64_t width = static_cast<uint64_t>(slice.columns.size()) * element;
  return {.rows = slice.rows.size(),
          .row_bytes = stride + width,
          .produce = [&source, slice, target, stride, first, width](Range rows, Production* out) {
            const auto begin = static_cast<uint64_t>(slice.rows.begin + rows.begin);
            const auto count = static_cast<uint64_t>(rows.size());
            HADAL_ASSIGN_OR_RETURN(const auto bytes,
                                   out->Read(source, begin * stride, count * stride));
            out->buffer.resize(count * width);
            for (uint64_t r = 0; r < count; ++r) {
              std::memcpy(out->buffer.data() + r * width, bytes.data() + r * stride + first, width);
            }
            out->pieces.push_back({target, static_cast<uint64_t>(rows.begin) * width, out->buffer});
            return OkStatus();
          }};
}

// One block's rows and columns, of those in `rows`.
struct Tile {
  Range rows;
  Range columns;
};

// Calls fn(i, j, tile) for every block that the rows touch.
template <typename Fn>
void ForEachTile(Range rows, int64_t columns, BlockShape block, Fn fn) {
  for (int64_t i = rows.begin / block.rows; i * block.rows < rows.end; ++i) {
    const Range tile_rows{std::max(rows.begin, i * block.rows),
                          std::min(rows.end, (i + 1) * block.rows)};
    for (int64_t j = 0; j * block.columns < columns; ++j) {
      fn(i, j, Tile{tile_rows, {j * block.columns, std::min(columns, (j + 1) * block.columns)}});
    }
  }
}

// One matrix on its way from e4m3 to bf16.
struct ToBf16 {
  const Checkpoint::Entry& weight;
  const Checkpoint::Entry& scale;
  BlockShape block;
  size_t target;

  Status operator()(Range rows, Production* out) const {
    const int64_t columns = weight.columns.size();
    const int64_t scale_columns = scale.columns.size();
    const int64_t first_block = rows.begin / block.rows;
    const int64_t scale_count = (CeilDiv(rows.end, block.rows) - first_block) * scale_columns;
    const auto scale_bytes = static_cast<uint64_t>(DTypeSize(*scale.info.dtype));
    HADAL_ASSIGN_OR_RETURN(
        const auto scales,
        out->Read(scale, static_cast<uint64_t>(first_block * scale_columns) * scale_bytes,
                  static_cast<uint64_t>(scale_count) * scale_bytes));
    HADAL_ASSIGN_OR_RETURN(const auto bytes,
                           out->Read(weight, static_cast<uint64_t>(rows.begin * columns),
                                     static_cast<uint64_t>(rows.size() * columns)));
    out->buffer.resize(bytes.size() * sizeof(bf16_t));
    const auto* codes = reinterpret_cast<const uint8_t*>(bytes.data());
    auto* values = reinterpret_cast<bf16_t*>(out->buffer.data());
    const auto factor = [&](int64_t index) {
      const std::byte* at = scales.data() + static_cast<uint64_t>(index) * scale_bytes;
      return scale_bytes == sizeof(float) ? Load<float>(at) : Bf16ToFloat(Load<bf16_t>(at));
    };
    // Row by row, not block by block: memory is then read and written from front to back.
    for (int64_t r = rows.begin; r < rows.end; ++r) {
      const int64_t first_scale = (r / block.rows - first_block) * scale_columns;
      for (int64_t j = 0; j < scale_columns; ++j) {
        const Range part{j * block.columns, std::min(columns, (j + 1) * block.columns)};
        const int64_t from = (r - rows.begin) * columns + part.begin;
        CastToBf16(codes + from, part.size(), factor(first_scale + j), values + from);
      }
    }
    out->pieces.push_back(
        {target, static_cast<uint64_t>(rows.begin * columns) * sizeof(bf16_t), out->buffer});
    return OkStatus();
  }
};

// One matrix on its way from bf16 to e4m3. Ranges of rows begin at blocks.
struct ToF8E4M3 {
  const Checkpoint::Entry& weight;
  BlockShape block;
  bool power_of_two;
  size_t code_target;
  size_t scale_target;

  Status operator()(Range rows, Production* out) const {
    const int64_t columns = weight.columns.size();
    const int64_t scale_columns = CeilDiv(columns, block.columns);
    const int64_t first_block = rows.begin / block.rows;
    const int64_t scale_count = CeilDiv(rows.size(), block.rows) * scale_columns;
    const int64_t count = rows.size() * columns;
    HADAL_ASSIGN_OR_RETURN(
        const auto bytes,
        out->Read(weight, static_cast<uint64_t>(rows.begin * columns) * sizeof(bf16_t),
                  static_cast<uint64_t>(count) * sizeof(bf16_t)));
    out->buffer.resize(static_cast<size_t>(scale_count) * sizeof(float) +
                       static_cast<size_t>(count));
    auto* scales = reinterpret_cast<float*>(out->buffer.data());
    auto* codes = reinterpret_cast<uint8_t*>(scales + scale_count);
    bool finite = true;
    ForEachTile(rows, columns, block, [&](int64_t i, int64_t j, const Tile& tile) {
      scales[(i - first_block) * scale_columns + j] =
          CastTile(bytes.data(), columns, rows.begin, tile, codes, &finite);
    });
    if (!finite) {
      return DataLoss(
          "{}: tensor {} holds a NaN or an infinity, which e4m3 cannot scale; fetch the "
          "file again",
          weight.file->path(), weight.info.name);
    }
    const std::span<const std::byte> made(out->buffer);
    const size_t scale_bytes = static_cast<size_t>(scale_count) * sizeof(float);
    out->pieces.push_back({scale_target,
                           static_cast<uint64_t>(first_block * scale_columns) * sizeof(float),
                           made.first(scale_bytes)});
    out->pieces.push_back(
        {code_target, static_cast<uint64_t>(rows.begin * columns), made.subspan(scale_bytes)});
    return OkStatus();
  }

  // Writes the codes of one tile and returns its scale. `bytes` and `codes` begin at row `first`.
  float CastTile(const std::byte* bytes, int64_t columns, int64_t first, const Tile& tile,
                 uint8_t* codes, bool* finite) const {
    const auto width = static_cast<size_t>(tile.columns.size());
    std::vector<bf16_t> values(static_cast<size_t>(tile.rows.size()) * width);
    for (int64_t r = tile.rows.begin; r < tile.rows.end; ++r) {
      const int64_t from = (r - first) * columns + tile.columns.begin;
      std::memcpy(values.data() + static_cast<size_t>(r - tile.rows.begin) * width,
                  bytes + from * static_cast<int64_t>(sizeof(bf16_t)), width * sizeof(bf16_t));
    }
    const float largest = LargestMagnitude(values.data(), static_cast<int64_t>(values.size()));
    if (std::isinf(largest)) {
      *finite = false;
      return 1;
    }
    const float scale = BlockScale(largest, power_of_two);
    for (int64_t r = tile.rows.begin; r < tile.rows.end; ++r) {
      CastToF8E4M3(values.data() + static_cast<size_t>(r - tile.rows.begin) * width,
                   tile.columns.size(), scale, codes + (r - first) * columns + tile.columns.begin);
    }
    return scale;
  }
};

}  // namespace

void AddCopy(const Checkpoint::Entry& source, OutputFile* file) {
  const size_t target =
      file->AddTensor(source.info.name, source.info.dtype_name, source.info.shape);
  file->works.push_back(CopyBytes(source, 0, source.info.end - source.info.begin, target));
}

void AddSlice(const Checkpoint::Entry& source, const TensorSlice& slice, std::string name,
              OutputFile* file) {
  std::vector<int64_t> shape = {slice.rows.size()};
  if (source.info.shape.size() == 2) shape.push_back(slice.columns.size());
  const size_t target = file->AddTensor(std::move(name), source.info.dtype_name, std::move(shape));
  if (slice.columns != source.columns) {
    file->works.push_back(CopyColumns(source, slice, target));
    return;
  }
  const uint64_t row_bytes = static_cast<uint64_t>(source.columns.size()) *
                             static_cast<uint64_t>(ElementBits(source.info.dtype_name)) / 8;
  file->works.push_back(CopyBytes(source, static_cast<uint64_t>(slice.rows.begin) * row_bytes,
                                  static_cast<uint64_t>(slice.rows.size()) * row_bytes, target));
}

void AddCastToBf16(const Checkpoint::Entry& weight, const Checkpoint::Entry& scale,
                   BlockShape block, OutputFile* file) {
  const size_t target = file->AddTensor(weight.info.name, "BF16", weight.info.shape);
  file->works.push_back({.rows = weight.rows.size(),
                         .multiple = block.rows,
                         .row_bytes = static_cast<uint64_t>(weight.columns.size()) * 3,
                         .produce = ToBf16{weight, scale, block, target}});
}

void AddCastToF8E4M3(const Checkpoint::Entry& weight, BlockShape block, bool power_of_two,
                     OutputFile* file) {
  const int64_t rows = weight.rows.size();
  const int64_t columns = weight.columns.size();
  const size_t codes = file->AddTensor(weight.info.name, "F8_E4M3", weight.info.shape);
  const size_t scales =
      file->AddTensor(weight.info.name + "_scale_inv", "F32",
                      {CeilDiv(rows, block.rows), CeilDiv(columns, block.columns)});
  file->works.push_back({.rows = rows,
                         .multiple = block.rows,
                         .row_bytes = static_cast<uint64_t>(columns) * 3,
                         .produce = ToF8E4M3{weight, block, power_of_two, codes, scales}});
}

}  // namespace hadal
