#include <seqmix/linear/kimi_delta_attention.hpp>

#include "support/mixers.hpp"

namespace seqmix::bench {
namespace {

const bool registered = add_mixer<KimiDeltaAttention<float>>(
    "kimi_delta_attention", {.channels = standard_channels, .heads = standard_heads, .key_dim = standard_head_dim},
    {.core = [](Index length) { return work::linear_recurrence(length, 12, 64, 64, channel_decay_delta); }});

}  // namespace
}  // namespace seqmix::bench
