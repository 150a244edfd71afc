"""bf16 and e4m3 in numpy. bf16 values are float32 arrays or uint16 bits, e4m3 values uint8 bits."""

import numpy as np

FP8_MAX = 448.0


def bf16_bits(x):
    """Bits of float32 `x` rounded to the nearest bf16, ties to even. REQUIRES: no NaN."""
    bits = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32)
    lsb = (bits >> np.uint32(16)) & np.uint32(1)
    return ((bits + np.uint32(0x7FFF) + lsb) >> np.uint32(16)).astype(np.uint16)


def bf16_values(bits):
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def round_bf16(x):
    """float32 `x` with every element rounded to bf16."""
    bits = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32)
    lsb = (bits >> np.uint32(16)) & np.uint32(1)
    return ((bits + np.uint32(0x7FFF) + lsb) & np.uint32(0xFFFF0000)).view(np.float32)


def _fp8_table():
    code = np.arange(256)
    sign = np.where(code & 0x80, -1.0, 1.0)
    exponent = (code >> 3) & 0xF
    mantissa = code & 7
    normal = (1 + mantissa / 8) * 2.0 ** (exponent - 7.0)
    value = sign * np.where(exponent == 0, mantissa * 2.0**-9, normal)
    value[[0x7F, 0xFF]] = np.nan
    return value.astype(np.float32)


FP8_TABLE = _fp8_table()


def fp8_bits(x):
    """e4m3fn bits of float32 `x`: nearest, ties to even, clamped to +-448."""
    x = np.clip(np.ascontiguousarray(x, dtype=np.float32), -FP8_MAX, FP8_MAX)
    bits = x.view(np.uint32)
    sign = ((bits >> np.uint32(24)) & np.uint32(0x80)).astype(np.uint8)
    magnitude = bits & np.uint32(0x7FFFFFFF)
    lsb = (magnitude >> np.uint32(20)) & np.uint32(1)
    normal = ((magnitude + np.uint32(0x7FFFF) + lsb) >> np.uint32(20)).astype(np.int32) - (120 << 3)
    subnormal = np.rint(np.abs(x) * np.float32(512)).astype(np.int32)
    code = np.where(magnitude < np.float32(2.0**-6).view(np.uint32), subnormal, normal)
    return code.astype(np.uint8) | sign


def fp8_values(bits):
    return FP8_TABLE[bits]


def quantise_fp8(x, block=128, power_of_two=False, stretches=(1.0,)):
    """(e4m3 bits, float32 scales [ceil(r/block), ceil(c/block)]) of a matrix: value = e4m3 * scale.

    A block's scale takes its largest element to 448; of several `stretches` of that scale, each
    block gets the one with the least squared error.
    """
    rows, cols = x.shape
    row_blocks, col_blocks = -(-rows // block), -(-cols // block)
    padded = np.zeros((row_blocks * block, col_blocks * block), np.float32)
    padded[:rows, :cols] = x
    tiles = padded.reshape(row_blocks, block, col_blocks, block)
    largest = np.maximum(np.abs(tiles).max(axis=(1, 3)), np.float32(1e-12))
    tight = (largest / np.float32(FP8_MAX)).astype(np.float32)
    if power_of_two:
        mantissa, exponent = np.frexp(tight)
        tight = np.ldexp(np.float32(1), exponent - (mantissa == 0.5)).astype(np.float32)
    bits, scale, least = np.zeros(tiles.shape, np.uint8), tight, np.inf
    for stretch in stretches:
        tried = tight * np.float32(stretch)
        spread = tried[:, None, :, None]
        codes = fp8_bits(tiles / spread)
        error = np.square(fp8_values(codes) * spread - tiles).sum(axis=(1, 3))
        better = error < least
        bits = np.where(better[:, None, :, None], codes, bits)
        scale, least = np.where(better, tried, scale), np.minimum(error, least)
    return np.ascontiguousarray(bits.reshape(padded.shape)[:rows, :cols]), scale


def round_activations_fp8(x, group=128, least=1e-4):
    """float32 `x` as FP8 products on a GPU read it: e4m3 * scale, one scale per row and `group`
    columns, which takes the largest element, or `least`, to 448. The same float32 steps as the
    kernel (kernels/cuda/rows/quantise.cu): codes from x * (448 / largest), scale largest / 448.
    """
    x = np.ascontiguousarray(x, dtype=np.float32)
    columns = x.shape[-1]
    padded = np.zeros((*x.shape[:-1], -(-columns // group) * group), np.float32)
    padded[..., :columns] = x
    groups = padded.reshape(*x.shape[:-1], -1, group)
    largest = np.maximum(np.abs(groups).max(axis=-1, keepdims=True), np.float32(least))
    codes = fp8_bits(groups * (np.float32(FP8_MAX) / largest))
    rounded = fp8_values(codes) * (largest / np.float32(FP8_MAX))
    return rounded.reshape(padded.shape)[..., :columns]


def dequantise_fp8(bits, scale, block=128):
    """The exact products e4m3 * scale, in float64."""
    rows, cols = bits.shape
    spread = np.repeat(np.repeat(scale.astype(np.float64), block, axis=0), block, axis=1)
    return fp8_values(bits).astype(np.float64) * spread[:rows, :cols]
