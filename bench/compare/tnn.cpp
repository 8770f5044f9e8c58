#include <seqmix/convolution/tnn.hpp>

#include "support/mixers.hpp"

namespace seqmix::bench {
namespace {

constexpr Index channels = standard_channels, inner = 3 * channels, width = 64, layers = 3;

const bool registered = add_mixer<Tnn<float>>(
    "tnn",
    {.channels = channels,
     .toeplitz = {.lags = 8192, .heads = 12, .width = width, .layers = layers, .decay = ToeplitzDecay::fixed}},
    {.core = [](Index length) { return work::long_convolution(length, inner); },
     .filters = width * (2 + layers * (width + 1)) + inner * (width + 2),
     .skims_state = true});

}  // namespace
}  // namespace seqmix::bench
