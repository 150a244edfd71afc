#pragma once

#include <cstdint>

namespace hadal::testing {

// The seed of this test run: fresh on every run, printed first, fixed with HADAL_TEST_SEED=N.
uint64_t RandomSeed();

}  // namespace hadal::testing
