#include <seqmix/linear/performer.hpp>

#include "support/mixers.hpp"

namespace seqmix::bench {
namespace {

const bool registered = add_mixer<Performer<float>>(
    "performer", {.channels = standard_channels, .heads = standard_heads},
    {.core = [](Index length) { return work::random_feature_attention(length, 12, 64, 266, 64); }});

}  // namespace
}  // namespace seqmix::bench
