#include <seqmix/recurrent/hgrn.hpp>

#include "support/mixers.hpp"

namespace seqmix::bench {
namespace {

const bool registered = add_mixer<Hgrn<float>>("hgrn", {.channels = standard_channels});

}  // namespace
}  // namespace seqmix::bench
