#include <seqmix/ssm/mamba3.hpp>

#include "support/mixers.hpp"

namespace seqmix::bench {
namespace {

const bool registered = add_mixer<Mamba3<float>>(
    "mamba3", {.channels = standard_channels},
    {.core = [](Index length) { return work::linear_recurrence(length, 24, 128, 64, shared_token_decay); }});

}  // namespace
}  // namespace seqmix::bench
