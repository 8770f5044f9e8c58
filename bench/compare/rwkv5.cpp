#include <seqmix/recurrent/rwkv5.hpp>

#include "support/mixers.hpp"

namespace seqmix::bench {
namespace {

const bool registered = add_mixer<Rwkv5<float>>(
    "rwkv5", {.channels = standard_channels, .heads = standard_heads},
    {.core = [](Index length) { return work::linear_recurrence(length, 12, 64, 64, constant_with_bonus); }});

}  // namespace
}  // namespace seqmix::bench
