#include <seqmix/linear/rebased.hpp>

#include "support/mixers.hpp"

namespace seqmix::bench {
namespace {

const bool registered = add_mixer<Rebased<float>>(
    "rebased", {.channels = standard_channels, .heads = standard_heads}, {.core = [](Index length) {
      return work::feature_attention(length, 12, 16, polynomial::Square::features(16), 64);
    }});

}  // namespace
}  // namespace seqmix::bench
