#include <seqmix/recurrent/rwkv6.hpp>

#include "support/recurrences.hpp"

namespace seqmix::bench {
namespace {

const bool registered = add_recurrence(
    "rwkv6",
    {.call =
         [](const RecurrenceStreams& s, Workspace& workspace) {
           rwkv6<float>(s.query, s.key, s.value, s.log_decay, s.bonus, s.memory, s.output, workspace);
         },
     .work = channel_decay,
     .log_decay = [](const RecurrenceStreams& s, Index t, Index h, Index i) { return double(s.log_decay(t, h, i)); },
     .bonus = true});

}  // namespace
}  // namespace seqmix::bench
