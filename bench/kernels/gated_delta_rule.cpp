#include <seqmix/linear/gated_delta_rule.hpp>

#include "support/recurrences.hpp"

namespace seqmix::bench {
namespace {

/// A log decay for each token and head: the first channels of head 0.
Sequence<const float> head_log_decays(const RecurrenceStreams& s) {
  return s.log_decay.head(0).columns(0, s.log_decay.heads());
}

const bool registered = add_recurrence(
    "gated_delta_rule",
    {.call =
         [](const RecurrenceStreams& s, Workspace& workspace) {
           gated_delta_rule<float>(s.query, s.key, s.value, head_log_decays(s), s.beta, 0.125f, QueryKeyNorm::none,
                                   s.memory, s.output, workspace);
         },
     .work = token_decay_delta,
     .log_decay = [](const RecurrenceStreams& s, Index t, Index h, Index) { return double(head_log_decays(s)(t, h)); },
     .removal = Removal::delta_rule,
     .scale = 0.125});

}  // namespace
}  // namespace seqmix::bench
