#include <seqmix/ssm/s5.hpp>

#include "support/mixers.hpp"

namespace seqmix::bench {
namespace {

const bool registered = add_mixer<S5<float>>(
    "s5", {.channels = standard_channels, .modes = 192},
    {.core = [](Index length) { return double(length * 192) * Work{.flops = 8.0 + 8 * standard_channels}; }});

}  // namespace
}  // namespace seqmix::bench
