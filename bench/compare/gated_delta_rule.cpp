#include <seqmix/linear/gated_delta_rule.hpp>

#include "support/mixers.hpp"

namespace seqmix::bench {
namespace {

const bool registered = add_mixer<GatedDeltaRule<float>>(
    "gated_delta_rule",
    {.channels = standard_channels,
     .heads = standard_heads,
     .key_dim = standard_head_dim,
     .value_dim = standard_head_dim},
    {.core = [](Index length) { return work::linear_recurrence(length, 12, 64, 64, token_decay_delta); }});

}  // namespace
}  // namespace seqmix::bench
