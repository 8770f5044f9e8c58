#include <seqmix/ssm/mamba3.hpp>

#include "support/mixers.hpp"

namespace seqmix::bench {
namespace {

const bool registered =
    add_mixer<Mamba3<float>>("mamba3", {.channels = standard_channels},
                             {.core = [](Index length) { return work::mamba3(length, 24, 128, 64, 32); }});

}  // namespace
}  // namespace seqmix::bench
