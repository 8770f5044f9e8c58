#include <seqmix/linear/based.hpp>

#include "support/recurrences.hpp"

namespace seqmix::bench {
namespace {

/// Products of pairs, the numbers themselves and 1; of queries with the coefficients of 1 + s + s^2 / 2, s = q . k / 4.
void features(const float* from, Index count, bool of_query, float* to) {
  to = of_query ? pair_products(from, count, 0.03125f, 0.0625f, to) : pair_products(from, count, 1, 1, to);
  for (Index i = 0; i < count; ++i) *to++ = of_query ? 0.25f * from[i] : from[i];
  *to = 1;
}

const bool registered =
    add_recurrence("based",
                   {.call =
                        [](const RecurrenceStreams& s, Workspace& workspace) {
                          based<float>(s.query, s.key, s.value, {}, s.memory, s.key_sum, s.output, workspace);
                        },
                    .work = no_decay,
                    .features = features,
                    .divisor = [](double weight) { return weight + 1e-6; }},
                   {.heads = 12, .key_dim = 16, .value_dim = 64, .features = polynomial::Taylor::features(16)});

}  // namespace
}  // namespace seqmix::bench
