#include <seqmix/linear/linear_attention.hpp>

#include "support/mixers.hpp"

namespace seqmix::bench {
namespace {

const bool registered = add_mixer<LinearAttention<float>>(
    "linear_attention", {.channels = standard_channels, .heads = standard_heads},
    {.core = [](Index length) { return work::linear_recurrence(length, 12, 64, 64, no_decay); }});

}  // namespace
}  // namespace seqmix::bench
