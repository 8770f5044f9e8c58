#include <seqmix/linear/kimi_delta_attention.hpp>

#include "support/recurrences.hpp"

namespace seqmix::bench {
namespace {

const bool registered = add_recurrence(
    "kimi_delta_attention",
    {.call =
         [](const RecurrenceStreams& s, Workspace& workspace) {
           kimi_delta_attention<float>(s.query, s.key, s.value, s.log_decay, s.beta, 0.125f, QueryKeyNorm::none,
                                       s.memory, s.output, workspace);
         },
     .work = channel_decay_delta,
     .log_decay = [](const RecurrenceStreams& s, Index t, Index h, Index i) { return double(s.log_decay(t, h, i)); },
     .removal = Removal::delta_rule,
     .scale = 0.125});

}  // namespace
}  // namespace seqmix::bench
