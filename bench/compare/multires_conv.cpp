#include <seqmix/convolution/multires_conv.hpp>

#include "support/mixers.hpp"

namespace seqmix::bench {
namespace {

// Ten levels of two taps: 1024 tokens.
const bool registered = add_mixer<MultiresConv<float>>("multires_conv", {.channels = standard_channels, .depth = 10},
                                                       {.core =
                                                            [](Index length) {
                                                              return double(length * standard_channels) *
                                                                     Work{.flops = 10 * (4.0 * 2 + 2) + 4, .exps = 1};
                                                            },
                                                        .filters = standard_channels * (2 * 2 + 12),
                                                        .skims_state = true});

}  // namespace
}  // namespace seqmix::bench
