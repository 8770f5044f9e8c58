#include <seqmix/linear/gated_linear_attention.hpp>

#include "support/recurrences.hpp"

namespace seqmix::bench {
namespace {

const bool registered = add_recurrence(
    "gated_linear_attention",
    {.call =
         [](const RecurrenceStreams& s, Workspace& workspace) {
           gated_linear_attention<float>(s.query, s.key, s.value, s.log_decay, 1.0f, s.memory, s.output, workspace);
         },
     .work = channel_decay,
     .log_decay = [](const RecurrenceStreams& s, Index t, Index h, Index i) { return double(s.log_decay(t, h, i)); }});

}  // namespace
}  // namespace seqmix::bench
