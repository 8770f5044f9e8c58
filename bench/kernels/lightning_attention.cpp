#include <seqmix/linear/lightning_attention.hpp>

#include "support/recurrences.hpp"

namespace seqmix::bench {
namespace {

const bool registered = add_recurrence(
    "lightning_attention",
    {.call =
         [](const RecurrenceStreams& s, Workspace& workspace) {
           lightning_attention<float>(s.query, s.key, s.value, s.head_log_decay, 0.125f, s.memory, s.output, workspace);
         },
     .work = constant_decay,
     .log_decay = [](const RecurrenceStreams& s, Index, Index h, Index) { return double(s.head_log_decay[h]); },
     .scale = 0.125});

}  // namespace
}  // namespace seqmix::bench
