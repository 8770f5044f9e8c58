// Counting allocations.
#pragma once

#include <cstddef>

namespace seqmix::test {

/// Number of allocations that the calling thread has made: operator new everywhere; malloc and its kin too with glibc
/// outside sanitizers (Eigen allocates by malloc).
std::size_t allocation_count();

}  // namespace seqmix::test
