#include <seqmix/convolution/hyena.hpp>

#include "support/mixers.hpp"

namespace seqmix::bench {
namespace {

const bool registered =
    add_mixer<Hyena<float>>("hyena", {.channels = standard_channels, .filter = {.samples = 8192}},
                            {.core = [](Index length) { return work::long_convolution(length, standard_channels); }});

}  // namespace
}  // namespace seqmix::bench
