#include <seqmix/convolution/synthesizer.hpp>

#include "support/mixers.hpp"

namespace seqmix::bench {
namespace {

const Index tokens = effort().longest_attention + 64;

const bool registered = add_mixer<Synthesizer<float>>(
    "synthesizer",
    {.channels = standard_channels, .heads = standard_heads, .max_length = tokens, .hidden = standard_head_dim},
    {.quadratic = true,
     .core = [](Index length) { return work::causal_attention(length, 12, 12, 64); },
     .core_step = [](Index context) { return work::attention_step(context, 12, 12, 64); },
     .filters = tokens * (standard_head_dim + 1)});

}  // namespace
}  // namespace seqmix::bench
