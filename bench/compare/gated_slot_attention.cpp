#include <seqmix/linear/gated_slot_attention.hpp>

#include "support/mixers.hpp"

namespace seqmix::bench {
namespace {

const bool registered = add_mixer<GatedSlotAttention<float>>(
    "gated_slot_attention", {.channels = standard_channels, .heads = standard_heads},
    {.core = [](Index length) { return work::gated_slot_attention(length, 12, 64, 64, 64); }});

}  // namespace
}  // namespace seqmix::bench
