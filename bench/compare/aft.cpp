#include <seqmix/convolution/aft.hpp>

#include "support/mixers.hpp"

namespace seqmix::bench {
namespace {

using Mixer = Aft<float>;
constexpr Index channels = standard_channels, taps = 32, longest = 8192, tokens = longest + 512, rank = 128;

const bool registered =
    add_mixer<Mixer>(
        "aft", {.channels = channels, .max_length = tokens, .rank = rank},
        {.quadratic = true,
         .longest = longest,
         .core = [](Index length) { return work::attention_free(length, channels, double(length + 1) / 2); },
         .core_step = [](Index context) { return work::attention_free_step(channels, double(context)); },
         .filters = 2 * tokens * rank}) &&
    add_mixer<Mixer>("aft/simple", {.channels = channels, .form = AftForm::simple},
                     {.core = [](Index length) { return work::attention_free(length, channels, 0); }}) &&
    add_mixer<Mixer>("aft/conv", {.channels = channels, .form = AftForm::conv, .heads = standard_heads, .taps = taps},
                     {.core = [](Index length) { return work::attention_free(length, channels, taps); }});

}  // namespace
}  // namespace seqmix::bench
