#include <seqmix/recurrent/mega_ema.hpp>

#include "support/mixers.hpp"

namespace seqmix::bench {
namespace {

const bool registered = add_mixer<MegaEma<float>>(
    "mega_ema", {.channels = standard_channels},
    {.core = [](Index length) { return work::damped_averages(length, standard_channels, 16); }});

}  // namespace
}  // namespace seqmix::bench
