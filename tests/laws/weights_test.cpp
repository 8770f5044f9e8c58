// Every weight of every registered mixer takes part in what it computes.
#include <catch2/catch_test_macros.hpp>
#include <set>
#include <string>

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

/// Adds the names of all weights of one configuration to `all`, and of those that change what the mixer gives to
/// `effective`.
void try_weights(const MixerEntry& entry, Index which, std::set<std::string>& all, std::set<std::string>& effective) {
  const auto setup = entry.setup(which);
  Rng rng(test_seed + 300);
  const Matrix<double> x = normal_matrix<double>(19, setup->make_double()->channels(), 1.0, rng);
  const Matrix<double> before = outputs(*setup, x);
  for (const NamedTensor& weight : setup->weights()) {
    const Matrix<double> kept = weight.tensor.values();
    if (kept.size() == 0) continue;
    all.insert(weight.name);
    weight.tensor.assign(kept + 0.3 * normal_matrix<double>(kept.rows(), kept.cols(), 1.0, rng));
    const double change = (outputs(*setup, x) - before).cwiseAbs().maxCoeff();
    weight.tensor.assign(kept);
    if (change > 1e-9 * before.cwiseAbs().maxCoeff()) effective.insert(weight.name);
  }
}

/// Weights that cancel out: they add the same number to all logits of a softmax.
const std::set<std::string> cancelling = {"synthesizer: key_fc.bias", "synthesizer, bidirectional: key_fc.bias",
                                          "aft: to_k.bias",           "aft, bidirectional: to_k.bias",
                                          "aft, extreme: to_k.bias",  "aft, extreme, bidirectional: to_k.bias"};

// Not in every configuration: norms over a single channel, for one, leave nothing of what comes before them.
TEST_CASE("every weight matters in some configuration") {
  for (const MixerEntry& entry : mixer_registry()) {
    std::set<std::string> all, effective;
    for (Index which = 0; which < entry.configurations(); ++which) try_weights(entry, which, all, effective);
    for (const std::string& name : all) {
      INFO(entry.name << ": " << name << " has no effect");
      CHECK(effective.contains(name) != cancelling.contains(entry.name + ": " + name));
    }
  }
}

}  // namespace
}  // namespace seqmix::test
