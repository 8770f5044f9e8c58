#include <seqmix/ssm/h3.hpp>

#include "support/mixers.hpp"

namespace seqmix::bench {
namespace {

const bool registered = add_mixer<H3<float>>("h3", {.channels = standard_channels}, {.core = [](Index length) {
                                               return work::diagonal_system(length, standard_channels, 32) +
                                                      work::short_convolution(length, standard_channels, 64);
                                             }});

}  // namespace
}  // namespace seqmix::bench
