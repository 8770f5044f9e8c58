#include <seqmix/convolution/long_conv.hpp>

#include "support/mixers.hpp"

namespace seqmix::bench {
namespace {

const bool registered =
    add_mixer<LongConv<float>>("long_conv", {.channels = standard_channels, .kernel_length = 8192},
                               {.core = [](Index length) { return work::long_convolution(length, standard_channels); },
                                .filters = (8192 + 1) * standard_channels,
                                .skims_state = true});

}  // namespace
}  // namespace seqmix::bench
