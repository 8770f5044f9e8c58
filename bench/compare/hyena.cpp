#include <seqmix/convolution/hyena.hpp>

#include "support/mixers.hpp"

namespace seqmix::bench {
namespace {

const bool registered =
    add_mixer<Hyena<float>>("hyena", {.channels = standard_channels, .filter = {.samples = 8192}},
                            {.core = [](Index length) { return work::long_convolution(length, standard_channels); },
                             .filters = 8192 * (3 + 1) + 64 * (3 + 2 + 2 * 65) + standard_channels * (64 + 2),
                             .skims_state = true});

}  // namespace
}  // namespace seqmix::bench
