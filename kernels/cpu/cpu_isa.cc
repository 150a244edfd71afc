#include "kernels/cpu/cpu_isa.h"

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>

namespace hadal {
namespace {

struct Registers {
  uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
};

Registers CpuId(uint32_t leaf, uint32_t subleaf) {
  Registers r;
  if (__get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx) == 0) return {};
  return r;
}

// Register files that the operating system saves and restores. REQUIRES: OSXSAVE.
uint64_t ExtendedControl() {
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return uint64_t{high} << 32 | low;
}

constexpr bool Bit(uint32_t word, int bit) { return (word >> bit & 1u) != 0; }

// Intel's cores do 32 bf16 multiply-adds in two cycles, but 64 of floats: there weights widened to
// float are the faster path (measured: 1.8 times at 512 rows, no slower at one).
bool HalfRateBf16() {
  const Registers vendor = CpuId(0, 0);
  return vendor.ebx == 0x756e6547 && vendor.edx == 0x49656e69 && vendor.ecx == 0x6c65746e;
}

// Linux gives a process the tile registers on request, for all of its threads, those running and
// those to come.
bool MayUseTiles() {
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

std::vector<CpuIsa> Detect() {
  constexpr uint64_t kYmmState = 0x6, kZmmState = 0xe6, kTileState = 0x60000;
  std::vector<CpuIsa> isas = {CpuIsa::kPortable};
  const Registers basic = CpuId(1, 0);
  const bool osxsave = Bit(basic.ecx, 27);
  const uint64_t saved = osxsave ? ExtendedControl() : 0;
  const Registers extended = CpuId(7, 0);
  const bool fma = Bit(basic.ecx, 12), f16c = Bit(basic.ecx, 29), avx2 = Bit(extended.ebx, 5);
  if ((saved & kYmmState) != kYmmState || !fma || !f16c || !avx2) return isas;
  isas.push_back(CpuIsa::kAvx2);
  const bool avx512 = Bit(extended.ebx, 16) && Bit(extended.ebx, 17) && Bit(extended.ebx, 30) &&
                      Bit(extended.ebx, 31);  // F, DQ, BW, VL
  if ((saved & kZmmState) != kZmmState || !avx512) return isas;
  isas.push_back(CpuIsa::kAvx512);
  if (!Bit(CpuId(7, 1).eax, 5)) return isas;
  isas.insert(HalfRateBf16() ? isas.end() - 1 : isas.end(), CpuIsa::kAvx512Bf16);
  const bool amx = Bit(extended.edx, 22) && Bit(extended.edx, 24);  // BF16, TILE
  if ((saved & kTileState) == kTileState && amx && MayUseTiles()) isas.push_back(CpuIsa::kAmx);
  return isas;
}

}  // namespace

std::string_view CpuIsaName(CpuIsa isa) {
  switch (isa) {
    case CpuIsa::kPortable: return "portable";
    case CpuIsa::kAvx2: return "avx2";
    case CpuIsa::kAvx512: return "avx512";
    case CpuIsa::kAvx512Bf16: return "avx512_bf16";
    case CpuIsa::kAmx: return "amx";
  }
  return "unknown";
}

std::vector<CpuIsa> SupportedCpuIsas() {
  static const std::vector<CpuIsa> isas = Detect();
  return isas;
}

bool IsSupported(CpuIsa isa) {
  const std::vector<CpuIsa> isas = SupportedCpuIsas();
  return std::find(isas.begin(), isas.end(), isa) != isas.end();
}

StatusOr<CpuIsa> ParseCpuIsa(std::string_view name) {
  const std::vector<CpuIsa> isas = SupportedCpuIsas();
  if (name.empty()) return isas.back();
  std::string names;
  for (const CpuIsa isa : isas) {
    if (CpuIsaName(isa) == name) return isa;
    names += (names.empty() ? "" : ", ") + std::string(CpuIsaName(isa));
  }
  return InvalidArgument("instruction set \"{}\" is not available on this machine; it has: {}",
                         name, names);
}

}  // namespace hadal
