#include <seqmix/linear/rebased.hpp>

#include "support/recurrences.hpp"

namespace seqmix::bench {
namespace {

/// Products of pairs; of queries with the coefficients of (q . k / 4)^2.
void features(const float* from, Index count, bool of_query, float* to) {
  pair_products(from, count, of_query ? 0.0625f : 1, of_query ? 0.125f : 1, to);
}

const bool registered =
    add_recurrence("rebased",
                   {.call =
                        [](const RecurrenceStreams& s, Workspace& workspace) {
                          rebased<float>(s.query, s.key, s.value, {}, s.memory, s.key_sum, s.output, workspace);
                        },
                    .work = no_decay,
                    .features = features,
                    .divisor = [](double weight) { return weight + 1e-6; }},
                   {.heads = 12, .key_dim = 16, .value_dim = 64, .features = polynomial::Square::features(16)});

}  // namespace
}  // namespace seqmix::bench
