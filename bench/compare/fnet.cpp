#include <seqmix/convolution/fnet.hpp>

#include "support/mixers.hpp"

namespace seqmix::bench {
namespace {

const bool registered =
    add_mixer<Fnet<float>>("fnet", {.channels = standard_channels},
                           {.core = [](Index length) { return work::fourier(length, standard_channels); }});

}  // namespace
}  // namespace seqmix::bench
