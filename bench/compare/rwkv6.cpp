#include <seqmix/recurrent/rwkv6.hpp>

#include "support/mixers.hpp"

namespace seqmix::bench {
namespace {

const bool registered = add_mixer<Rwkv6<float>>(
    "rwkv6", {.channels = standard_channels, .heads = standard_heads},
    {.core = [](Index length) { return work::linear_recurrence(length, 12, 64, 64, channel_decay); }});

}  // namespace
}  // namespace seqmix::bench
