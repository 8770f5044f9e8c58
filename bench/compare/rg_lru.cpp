#include <seqmix/ssm/rg_lru.hpp>

#include "support/mixers.hpp"

namespace seqmix::bench {
namespace {

const bool registered =
    add_mixer<RgLruBlock<float>>("rg_lru", {.channels = standard_channels, .heads = standard_heads});

}  // namespace
}  // namespace seqmix::bench
