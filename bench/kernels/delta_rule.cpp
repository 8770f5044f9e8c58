#include <seqmix/linear/delta_rule.hpp>

#include "support/recurrences.hpp"

namespace seqmix::bench {
namespace {

const bool registered =
    add_recurrence("delta_rule", {.call =
                                      [](const RecurrenceStreams& s, Workspace& workspace) {
                                        delta_rule<float>(s.query, s.key, s.value, s.beta, 0.125f, QueryKeyNorm::none,
                                                          s.memory, s.output, workspace);
                                      },
                                  .work = no_decay_delta,
                                  .removal = Removal::delta_rule,
                                  .scale = 0.125});

}  // namespace
}  // namespace seqmix::bench
