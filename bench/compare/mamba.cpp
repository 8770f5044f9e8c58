#include <seqmix/ssm/mamba.hpp>

#include "support/mixers.hpp"

namespace seqmix::bench {
namespace {

const bool registered = add_mixer<Mamba<float>>("mamba", {.channels = standard_channels}, {.core = [](Index length) {
                                                  return work::selective_scan(length, 2 * standard_channels, 16);
                                                }});

}  // namespace
}  // namespace seqmix::bench
