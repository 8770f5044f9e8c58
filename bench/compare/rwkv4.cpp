#include <seqmix/recurrent/rwkv4.hpp>

#include "support/mixers.hpp"

namespace seqmix::bench {
namespace {

const bool registered =
    add_mixer<Rwkv4<float>>("rwkv4", {.channels = standard_channels},
                            {.core = [](Index length) { return work::log_average(length, standard_channels); }});

}  // namespace
}  // namespace seqmix::bench
