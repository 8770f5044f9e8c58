#include <seqmix/linear/delta_rule.hpp>

#include "support/mixers.hpp"

namespace seqmix::bench {
namespace {

const bool registered = add_mixer<DeltaRule<float>>(
    "delta_rule", {.channels = standard_channels, .heads = standard_heads},
    {.core = [](Index length) { return work::linear_recurrence(length, 12, 64, 64, no_decay_delta); }});

}  // namespace
}  // namespace seqmix::bench
