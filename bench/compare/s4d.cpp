#include <seqmix/ssm/s4d.hpp>

#include "support/mixers.hpp"

namespace seqmix::bench {
namespace {

const bool registered = add_mixer<S4d<float>>("s4d", {.channels = standard_channels}, {.core = [](Index length) {
                                                return double(length * standard_channels) *
                                                       Work{.flops = 16.0 * 32 + 2, .streamed_bytes = 8};
                                              }});

}  // namespace
}  // namespace seqmix::bench
