#include <seqmix/recurrent/retention.hpp>

#include "support/mixers.hpp"

namespace seqmix::bench {

[[maybe_unused]] static const bool retention =
    add_mixer<Retention<float>>("retention", {.channels = standard_channels, .heads = standard_heads});

}  // namespace seqmix::bench
