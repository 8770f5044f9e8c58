#include <seqmix/convolution/gated_hyena.hpp>

#include "support/mixers.hpp"

namespace seqmix::bench {
namespace {

const bool registered = add_mixer<GatedHyena<float>>(
    "gated_hyena", {.channels = standard_channels, .heads = standard_heads},
    {.core = [](Index length) { return work::diagonal_system(length, standard_channels, 8); }});

}  // namespace
}  // namespace seqmix::bench
