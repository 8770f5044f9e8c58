#include <cmath>
#include <seqmix/recurrent/hgrn2.hpp>

#include "support/recurrences.hpp"

namespace seqmix::bench {
namespace {

const bool registered = add_recurrence(
    "hgrn2",
    {.call =
         [](const RecurrenceStreams& s, Workspace& workspace) {
           hgrn2<float>(s.query, s.log_decay, s.value, 0.125f, s.memory, s.output, workspace);
         },
     .work = channel_decay,
     .log_decay = [](const RecurrenceStreams& s, Index t, Index h, Index i) { return double(s.log_decay(t, h, i)); },
     .scale = 0.125,
     .key = [](const RecurrenceStreams& s, Index t, Index h, Index i) { return -std::expm1(s.log_decay(t, h, i)); }});

}  // namespace
}  // namespace seqmix::bench
