#include <seqmix/ssm/s4.hpp>

#include "support/state_space_cores.hpp"

namespace seqmix::bench {
namespace {

// What S4D takes, and for the part of rank 1 a multiply-add for each part of what it reads and of what it writes.
const bool registered = add_state_space<S4Core>("s4", 24, 10);

}  // namespace
}  // namespace seqmix::bench
