#include <seqmix/ssm/mamba2.hpp>

#include "support/mixers.hpp"

namespace seqmix::bench {
namespace {

const bool registered = add_mixer<Mamba2<float>>(
    "mamba2", {.channels = standard_channels},
    {.core = [](Index length) { return work::linear_recurrence(length, 24, 128, 64, shared_token_decay); }});

}  // namespace
}  // namespace seqmix::bench
