#include <seqmix/ssm/lru.hpp>

#include "support/mixers.hpp"

namespace seqmix::bench {
namespace {

const bool registered = add_mixer<LruLayer<float>>("lru", {.channels = standard_channels});

}  // namespace
}  // namespace seqmix::bench
