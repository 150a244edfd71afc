// hadal-make-tiny-checkpoint DIR SEED: a random checkpoint (tests/support) in an existing directory.

#include <cstdio>
#include <exception>
#include <string>

#include "tests/support/tiny_checkpoint.h"

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: %s DIR SEED\n", argv[0]);
    return 2;
  }
  try {
    hadal::testing::WriteTinyCheckpoint(argv[1], hadal::testing::TinyConfig(hadal::DType::kBF16),
                                        std::stoull(argv[2]));
  } catch (const std::exception& e) {
    std::fprintf(stderr, "%s\n", e.what());
    return 1;
  }
}
