"""Reads and writes safetensors files and Hugging Face checkpoint directories."""

import json
import os
from pathlib import Path

import numpy as np

from reference import number_formats

_STORAGE = {"F32": np.float32, "F64": np.float64, "BF16": np.uint16, "F8_E4M3": np.uint8,
            "I32": np.int32, "I64": np.int64}


class Tensor:
    """A tensor as stored: BF16 and F8_E4M3 hold their bits."""

    def __init__(self, dtype, data):
        self.dtype = dtype
        self.data = np.ascontiguousarray(data, dtype=_STORAGE[dtype])

    def values(self):
        """The values, exactly: float32 for BF16 and F8_E4M3."""
        if self.dtype == "BF16":
            return number_formats.bf16_values(self.data)
        if self.dtype == "F8_E4M3":
            return number_formats.fp8_values(self.data)
        return self.data


def header_bytes(layout, metadata=None):
    """The start of a file: length and JSON. layout: name -> (dtype, shape), in file order."""
    header = {"__metadata__": metadata or {"format": "pt"}}
    offset = 0
    for name, (dtype, shape) in layout.items():
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(_STORAGE[dtype]).itemsize
        header[name] = {"dtype": dtype, "shape": list(shape),
                        "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def write(path, tensors, metadata=None):
    layout = {name: (tensor.dtype, tensor.data.shape) for name, tensor in tensors.items()}
    with open(path, "wb") as file:
        file.write(header_bytes(layout, metadata))
        for tensor in tensors.values():
            file.write(tensor.data.tobytes())


def read(path):
    """name -> Tensor, mapped from the file."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    if os.path.getsize(path) == 8 + length:
        data = np.zeros(0, np.uint8)
    else:
        data = np.memmap(path, np.uint8, "r", offset=8 + length)
    tensors = {}
    for name, entry in header.items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            stored = np.frombuffer(data[begin:end], _STORAGE[entry["dtype"]])
            tensors[name] = Tensor(entry["dtype"], stored.reshape(entry["shape"]))
    return tensors


def write_checkpoint(directory, shards):
    """One model.safetensors, or numbered shards with an index. shards: list of name -> Tensor."""
    directory = Path(directory)
    if len(shards) == 1:
        write(directory / "model.safetensors", shards[0])
        return
    names = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    weight_map, total = {}, 0
    for name, tensors in zip(names, shards):
        write(directory / name, tensors)
        weight_map.update({key: name for key in tensors})
        total += sum(tensor.data.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    write_json(directory / "model.safetensors.index.json", index)


def read_checkpoint(directory):
    directory = Path(directory)
    single = directory / "model.safetensors"
    if single.exists():
        return read(single)
    index = json.loads((directory / "model.safetensors.index.json").read_text())
    tensors = {}
    for name in sorted(set(index["weight_map"].values())):
        tensors.update(read(directory / name))
    return tensors


def write_json(path, value):
    Path(path).write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
