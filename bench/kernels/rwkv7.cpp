#include <seqmix/recurrent/rwkv7.hpp>

#include "support/recurrences.hpp"

namespace seqmix::bench {
namespace {

const bool registered = add_recurrence(
    "rwkv7",
    {.call =
         [](const RecurrenceStreams& s, Workspace& workspace) {
           rwkv7<float>(s.query, s.key, s.value, s.log_decay, s.a, s.b, s.memory, s.output, workspace);
         },
     .work = channel_decay_low_rank,
     .log_decay = [](const RecurrenceStreams& s, Index t, Index h, Index i) { return double(s.log_decay(t, h, i)); },
     .removal = Removal::low_rank});

}  // namespace
}  // namespace seqmix::bench
