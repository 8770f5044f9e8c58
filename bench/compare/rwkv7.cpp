#include <seqmix/recurrent/rwkv7.hpp>

#include "support/mixers.hpp"

namespace seqmix::bench {
namespace {

const bool registered = add_mixer<Rwkv7<float>>(
    "rwkv7", {.channels = standard_channels, .heads = standard_heads},
    {.core = [](Index length) { return work::linear_recurrence(length, 12, 64, 64, channel_decay_low_rank); }});

}  // namespace
}  // namespace seqmix::bench
