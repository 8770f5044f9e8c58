#include <seqmix/linear/simple_gated_linear_attention.hpp>

#include "support/recurrences.hpp"

namespace seqmix::bench {
namespace {

/// A log decay for each token and head: the first channels of head 0.
Sequence<const float> head_log_decays(const RecurrenceStreams& s) {
  return s.log_decay.head(0).columns(0, s.log_decay.heads());
}

const bool registered = add_recurrence(
    "simple_gated_linear_attention",
    {.call =
         [](const RecurrenceStreams& s, Workspace& workspace) {
           simple_gated_linear_attention<float>(s.query, s.key, s.value, head_log_decays(s), 0.125f, s.memory, s.output,
                                                workspace);
         },
     .work = {4, 1.0 / 64, 4},
     .log_decay = [](const RecurrenceStreams& s, Index t, Index h, Index) { return double(head_log_decays(s)(t, h)); },
     .scale = 0.125});

}  // namespace
}  // namespace seqmix::bench
