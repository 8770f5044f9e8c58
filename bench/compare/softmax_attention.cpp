#include <seqmix/softmax/softmax_attention.hpp>

#include "support/mixers.hpp"

namespace seqmix::bench {
namespace {

const bool registered = add_mixer<SoftmaxAttention<float>>(
    "softmax_attention", {.channels = standard_channels, .heads = standard_heads},
    {.quadratic = true,
     .core = [](Index length) { return work::causal_attention(length, 12, 12, 64); },
     .core_step = [](Index context) { return work::attention_step(context, 12, 12, 64); }});

}  // namespace
}  // namespace seqmix::bench
