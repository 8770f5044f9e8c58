// Every weight of every registered mixer takes part in what it computes.
#include <catch2/catch_test_macros.hpp>
#include <cstdio>

#include "support/registry.hpp"

namespace seqmix::test {
namespace {

Matrix<double> outputs(MixerSetup& setup, const Matrix<double>& x) {
  const auto mixer = setup.make_double();
  Workspace workspace;
  Matrix<double> y(x.rows(), x.cols());
  mixer->forward(x, y, workspace);
  return y;
}

/// How many of the weights, by name and configuration, could be anything.
int idle_weights(const MixerEntry& entry, Index which) {
  const auto setup = entry.setup(which);
  Rng rng(test_seed + 300);
  const Matrix<double> x = normal_matrix<double>(19, setup->make_double()->channels(), 1.0, rng);
  const Matrix<double> before = outputs(*setup, x);
  int idle = 0;
  for (const NamedTensor& weight : setup->weights()) {
    const Matrix<double> kept = weight.tensor.values();
    if (kept.size() == 0) continue;
    weight.tensor.assign(kept + 0.3 * normal_matrix<double>(kept.rows(), kept.cols(), 1.0, rng));
    // What is below is rounding only: biases of keys shift all scores of a softmax alike.
    const double change = (outputs(*setup, x) - before).cwiseAbs().maxCoeff();
    weight.tensor.assign(kept);
    if (change > 1e-9 * before.cwiseAbs().maxCoeff()) continue;
    ++idle;
    std::printf("%s, %s: %s has no effect\n", entry.name.c_str(), setup->configuration().c_str(), weight.name.c_str());
  }
  return idle;
}

TEST_CASE("every weight matters") {
  for (const MixerEntry& entry : mixer_registry()) {
    for (Index which = 0; which < entry.configurations(); ++which) CHECK(idle_weights(entry, which) == 0);
  }
}

}  // namespace
}  // namespace seqmix::test
