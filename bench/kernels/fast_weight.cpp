#include <algorithm>
#include <cmath>
#include <numeric>
#include <seqmix/linear/fast_weight.hpp>

#include "support/recurrences.hpp"

namespace seqmix::bench {
namespace {

constexpr Index nu = 2;
constexpr float epsilon = 1e-5f;

void divide_by_sum(float* features, Index count) {
  const double sum = std::accumulate(features, features + count, 0.0);
  for (Index i = 0; i < count; ++i) features[i] = float(double(features[i]) / sum);
}

/// elu(x) + 1, over the sum of all.
void elu1(const float* from, Index count, bool, float* to) {
  std::transform(from, from + count, to, [](float x) { return x > 0 ? x + 1 : std::exp(x); });
  divide_by_sum(to, count);
}

/// r[j] r[j - i] for i = 1 .. nu, where r are the positive and the negative parts of x, over the sum of all.
void dpfp(const float* from, Index count, bool, float* to) {
  const Index parts = 2 * count;
  const auto part = [&](Index j) { return std::max(j < count ? from[j] : -from[j - count], 0.0f); };
  for (Index i = 1; i <= nu; ++i) {
    for (Index j = 0; j < parts; ++j) to[(i - 1) * parts + j] = part(j) * part((j - i + parts) % parts);
  }
  divide_by_sum(to, parts * nu);
}

/// As the layer begins by default: elu(x) + 1, no denominator.
const RecurrenceCore plain{.call =
                               [](const RecurrenceStreams& s, Workspace& workspace) {
                                 fast_weight<float>(s.query, s.key, s.value, s.beta, {.scale = 0.125f}, s.memory,
                                                    s.key_sum, s.output, workspace);
                               },
                           .work = no_decay_delta,
                           .removal = Removal::delta_rule,
                           .scale = 0.125,
                           .features = elu1};

/// Deterministic features without parameters, outputs divided by the sum of key weights.
const RecurrenceCore normalised_dpfp{
    .call =
        [](const RecurrenceStreams& s, Workspace& workspace) {
          fast_weight<float>(s.query, s.key, s.value, s.beta,
                             {.features = {FastWeightFeatures::Kind::dpfp, nu}, .normalize = true, .epsilon = epsilon},
                             s.memory, s.key_sum, s.output, workspace);
        },
    .work = no_decay_delta,
    .removal = Removal::delta_rule,
    .features = dpfp,
    .divisor = [](double weight) { return weight + double(epsilon); }};

const bool registered = add_recurrence("fast_weight", plain, {.heads = 12, .features = 64}) &&
                        add_recurrence("fast_weight/dpfp", normalised_dpfp,
                                       {.heads = 12, .key_dim = 16, .value_dim = 64, .features = 2 * 16 * nu});

}  // namespace
}  // namespace seqmix::bench
