#pragma once

#include <sched.h>

#include <span>

namespace hadal {

// The cores that a process may run on; none when the system does not tell.
cpu_set_t CoresOf(int process);

// Threads for the rank whose cores are masks[own]: its part of them, where others may run on them too.
// `masks` are of all ranks of its host: one that mpirun has bound elsewhere takes nothing.
int ThreadsOfRank(std::span<const cpu_set_t> masks, int own);

// Whether masks[own] are fewer cores than the rank's part of `host`, what is there for all ranks.
bool BoundTooTightly(std::span<const cpu_set_t> masks, int own, const cpu_set_t& host);

}  // namespace hadal
