#include <seqmix/linear/recurrent_fast_weight.hpp>

#include "support/mixers.hpp"

namespace seqmix::bench {
namespace {

const bool registered =
    add_mixer<RecurrentFastWeight<float>>(
        "recurrent_fast_weight", {.channels = standard_channels, .heads = standard_heads},
        {.core = [](Index length) { return work::recurrent_delta_net(length, standard_heads, standard_head_dim); }}) &&
    add_mixer<RecurrentFastWeight<float, RecurrentFastWeightVariant::delta_rnn>>(
        "recurrent_fast_weight/delta_rnn", {.channels = standard_channels, .heads = standard_heads},
        {.core = [](Index length) { return work::delta_rnn(length, standard_heads, standard_head_dim); }});

}  // namespace
}  // namespace seqmix::bench
