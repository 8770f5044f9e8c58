#include <seqmix/convolution/short_conv.hpp>

#include "support/mixers.hpp"

namespace seqmix::bench {
namespace {

const bool registered = add_mixer<ShortConv<float>>(
    "short_conv", {.channels = 2 * standard_channels},
    {.core = [](Index length) { return work::short_convolution(length, 2 * standard_channels, 4); }});

}  // namespace
}  // namespace seqmix::bench
