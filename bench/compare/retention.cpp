#include <seqmix/recurrent/retention.hpp>

#include "support/mixers.hpp"

namespace seqmix::bench {
namespace {

const bool registered = add_mixer<Retention<float>>(
    "retention", {.channels = standard_channels, .heads = standard_heads},
    {.core = [](Index length) { return work::linear_recurrence(length, 12, 64, 128, constant_decay); }});

}  // namespace
}  // namespace seqmix::bench
