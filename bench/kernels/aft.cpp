#include <seqmix/convolution/aft.hpp>

#include <cmath>
#include <memory>

#include "support/cores.hpp"
#include "support/data.hpp"

namespace seqmix::bench {
namespace {

constexpr Index channels = 768, window = 32;

struct Data {
  Data(AftForm of_form, Index length, int threads)
      : form(of_form),
        query(length, 1, channels, -1, 1, rng),
        key(length, 1, channels, -2, 2, rng),
        value(length, 1, channels, -1, 1, rng),
        output(length, 1, channels),
        table(form == AftForm::simple ? Tensor() : Tensor(length, 1, length, -1, 1, rng)),
        state(bias(), 1, channels),
        workspace(executor(threads)) {}

  AftBias<float> bias() const { return {form, table.flat(), window}; }

  void run(Index begin, Index count) {
    // Steps go round the last tokens.
    if (state.position > begin) state = before_steps;
    if (count == 1 && before_steps.position != begin && state.position == begin) before_steps = state;
    const auto rows = [&](Tensor& tensor) { return tensor.view().rows(begin, count); };
    aft<float>(state, rows(query), rows(key), rows(value), bias(), rows(output), workspace);
  }
  void clear() { state = AftState<float>(bias(), 1, channels); }

  /// The equations in double, for some rows and channels.
  void check(Index begin, Index length) const {
    Comparison comparison;
    for (const Index t : sampled_rows(length)) {
      for (const Index c : {Index(0), channels / 3, channels - 1}) {
        if (t < begin) continue;
        double above = 0, below = 0;
        for (Index j = 0; j <= t; ++j) {
          const bool near = form == AftForm::full || (form == AftForm::local && t - j < window);
          const double weight = std::exp(double(key.flat()(j, c)) + (near ? double(table.flat()(t, j)) : 0));
          above += weight * double(value.flat()(j, c)), below += weight;
        }
        const double expected = above / below / (1 + std::exp(-double(query.flat()(t, c))));
        comparison.add(&output.flat()(t, c), &expected, 1);
      }
    }
    comparison.expect_within(1e-5, "the average");
  }

  Index state_bytes() const { return Index(state.sums.size() * sizeof(float)) + state.near.bytes(); }

  AftForm form;
  Rng rng{5};
  Tensor query, key, value, output, table;
  AftState<float> state, before_steps;
  Workspace workspace;
};

template <AftForm form>
const auto make = [](Index tokens, int threads) { return std::make_shared<Data>(form, tokens, threads); };

const bool registered =
    add_core_sequences("aft", make<AftForm::full>,
                       [](Index length) { return work::attention_free(length, channels, double(length + 1) / 2); },
                       {2048}) &&
    add_core_sequences("aft/local", make<AftForm::local>,
                       [](Index length) { return work::attention_free(length, channels, window); }) &&
    add_core_sequences("aft/simple", make<AftForm::simple>,
                       [](Index length) { return work::attention_free(length, channels, 0); }) &&
    add_core_step("aft/local", make<AftForm::local>, work::attention_free_step(channels, window));

}  // namespace
}  // namespace seqmix::bench
