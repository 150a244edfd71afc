#include "kernels/cpu/probe_kernel.h"

namespace hadal {
namespace {

#include "kernels/cpu/amx_tiles.inc"

}  // namespace

double ProbeFlopsAmx(int64_t rounds, float* sink) {
  ConfigureTiles();
  alignas(64) float tile[16 * 16];
  for (float& x : tile) x = *sink;
  ZeroTile<0>();
  ZeroTile<1>();
  ZeroTile<2>();
  ZeroTile<3>();
  LoadTile<4>(tile, 64);
  LoadTile<5>(tile, 64);
  LoadTile<6>(tile, 64);
  LoadTile<7>(tile, 64);
  // The four sums of a block of 32 rows and 32 outputs.
  for (int64_t i = 0; i < rounds; ++i) {
    AddProduct<0, 4, 6>();
    AddProduct<2, 5, 6>();
    AddProduct<1, 4, 7>();
    AddProduct<3, 5, 7>();
  }
  StoreTile<0>(tile, 64);
  *sink += tile[0];
  return 2.0 * 4 * 16 * 16 * 32 * static_cast<double>(rounds);
}

}  // namespace hadal
