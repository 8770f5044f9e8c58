#include <seqmix/ssm/s4d.hpp>

#include "support/state_space_cores.hpp"

namespace seqmix::bench {
namespace {

// A token takes, for every mode, a complex multiply-add (four real ones), and one for each part of the input and of the
// output.
const bool registered = add_state_space<S4dCore>("s4d", 16, 6);

}  // namespace
}  // namespace seqmix::bench
