#include <seqmix/recurrent/rwkv5.hpp>

#include "support/recurrences.hpp"

namespace seqmix::bench {
namespace {

const bool registered = add_recurrence(
    "rwkv5",
    {.call =
         [](const RecurrenceStreams& s, Workspace& workspace) {
           rwkv5<float>(s.query, s.key, s.value, s.channel_log_decay, s.bonus, s.memory, s.output, workspace);
         },
     .work = constant_with_bonus,
     .log_decay = [](const RecurrenceStreams& s, Index, Index h, Index i) { return double(s.channel_log_decay(h, i)); },
     .bonus = true});

}  // namespace
}  // namespace seqmix::bench
