#include <seqmix/linear/based.hpp>

#include "support/mixers.hpp"

namespace seqmix::bench {
namespace {

const bool registered = add_mixer<Based<float>>(
    "based", {.channels = standard_channels, .heads = standard_heads}, {.core = [](Index length) {
      return work::feature_attention(length, 12, 16, polynomial::Taylor::features(16), 64);
    }});

}  // namespace
}  // namespace seqmix::bench
