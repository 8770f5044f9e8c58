#include <seqmix/linear/fast_weight.hpp>

#include "support/mixers.hpp"

namespace seqmix::bench {
namespace {

const bool registered = add_mixer<FastWeight<float>>(
    "fast_weight", {.channels = standard_channels, .heads = standard_heads},
    {.core = [](Index length) { return work::linear_recurrence(length, 12, 64, 64, no_decay_delta); }});

}  // namespace
}  // namespace seqmix::bench
