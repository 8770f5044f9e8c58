#include <cmath>
#include <seqmix/linear/linear_attention.hpp>

#include "support/recurrences.hpp"

namespace seqmix::bench {
namespace {

/// Queries and keys that are mapped already, no denominator: the work that all linear attentions share.
const RecurrenceCore mapped{.call =
                                [](const RecurrenceStreams& s, Workspace& workspace) {
                                  linear_attention<feature_map::Identity, float>(s.query, s.key, s.value,
                                                                                 {.normalize = false}, s.memory,
                                                                                 s.key_sum, s.output, workspace);
                                },
                            .work = no_decay};

/// As in the paper: phi(x) = elu(x) + 1 and outputs divided by the sum of key weights.
const RecurrenceCore elu1{.call =
                              [](const RecurrenceStreams& s, Workspace& workspace) {
                                linear_attention<feature_map::Elu1, float>(s.query, s.key, s.value, {}, s.memory,
                                                                           s.key_sum, s.output, workspace);
                              },
                          .work = {.flops_per_channel = 8, .exps_per_channel = 2, .streams = 4},
                          .feature = [](float x) { return x > 0 ? x + 1 : std::exp(x); },
                          .divisor = [](double weight) { return weight + 1e-6; }};

const bool registered = add_recurrence("linear_attention", mapped) && add_recurrence("linear_attention/elu1", elu1);

}  // namespace
}  // namespace seqmix::bench
