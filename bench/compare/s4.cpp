#include <seqmix/ssm/s4.hpp>

#include "support/mixers.hpp"

namespace seqmix::bench {
namespace {

const bool registered = add_mixer<S4<float>>("s4", {.channels = standard_channels}, {.core = [](Index length) {
                                               return double(length * standard_channels) *
                                                      Work{.flops = 24.0 * 32 + 4, .streamed_bytes = 8};
                                             }});

}  // namespace
}  // namespace seqmix::bench
