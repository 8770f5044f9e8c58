#include <seqmix/recurrent/hgrn2.hpp>

#include "support/mixers.hpp"

namespace seqmix::bench {
namespace {

const bool registered = add_mixer<Hgrn2<float>>(
    "hgrn2", {.channels = standard_channels, .key_dim = standard_head_dim},
    {.core = [](Index length) { return work::linear_recurrence(length, 12, 64, 64, channel_decay); }});

}  // namespace
}  // namespace seqmix::bench
