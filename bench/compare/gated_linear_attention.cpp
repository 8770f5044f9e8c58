#include <seqmix/linear/gated_linear_attention.hpp>

#include "support/mixers.hpp"

namespace seqmix::bench {
namespace {

const bool registered = add_mixer<GatedLinearAttention<float>>(
    "gated_linear_attention",
    {.channels = standard_channels, .heads = standard_heads, .key_channels = standard_channels},
    {.core = [](Index length) { return work::linear_recurrence(length, 12, 64, 64, channel_decay); }});

}  // namespace
}  // namespace seqmix::bench
