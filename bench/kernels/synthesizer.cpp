#include <seqmix/convolution/synthesizer.hpp>

#include <algorithm>
#include <memory>
#include <vector>

#include "support/cores.hpp"
#include "support/data.hpp"

namespace seqmix::bench {
namespace {

constexpr Index heads = 12, width = 64;  // of queries, hidden units and values

SynthesizerCoreConfig config_of(SynthesizerForm form, Index tokens) {
  return {.form = form, .heads = heads, .head_dim = width, .value_dim = width, .max_length = tokens, .hidden = width};
}

struct Data {
  Data(SynthesizerForm form, Index length, int threads)
      : query(length, heads, width, -1, 1, rng),
        value(length, heads, width, -1, 1, rng),
        output(length, heads, width),
        weights(SynthesizerCore<float>::random_weights(config_of(form, length), rng)),
        core(config_of(form, length), weights),
        workspace(executor(threads)) {
    clear();
  }

  void run(Index begin, Index count) {
    // Steps go round the last tokens.
    if (state.size() > begin) clear(), state.append(none(begin), value.view().rows(0, begin));
    core.run(state, query.view().rows(begin, count), {}, value.view().rows(begin, count),
             output.view().rows(begin, count), workspace);
  }
  void clear() {
    state = core.initial_state();
    state.reserve(value.view().length());
  }

  /// The equations in double, for some rows and heads.
  void check(Index begin, Index length) const {
    Comparison comparison;
    for (const Index t : sampled_rows(length)) {
      if (t < begin) continue;
      for (const Index h : {Index(0), heads - 1}) {
        const std::vector<float> logits = logits_of(t, h);
        const float one = 1;
        const auto expected = reference_attention(&one, {logits.data(), t + 1, 1}, value.view().head(h).rows(0, t + 1),
                                                  1, [](Index) { return true; });
        comparison.add(output.view().row(t, h), expected.data(), width);
      }
    }
    comparison.expect_within(1e-5, "the attention");
  }

  std::vector<float> logits_of(Index t, Index h) const {
    std::vector<float> logits(std::size_t(t + 1));
    std::vector<double> hidden(std::size_t(width), 0.0);
    const Index most = core.config().max_length;
    if (core.config().form == SynthesizerForm::random) {
      for (Index j = 0; j <= t; ++j) logits[std::size_t(j)] = weights.random(h * most + t, j);
      return logits;
    }
    for (Index i = 0; i < width; ++i) {
      double sum = double(weights.hidden_bias[i]);
      for (Index k = 0; k < width; ++k) sum += double(weights.hidden(i, k)) * double(query.view()(t, h, k));
      hidden[std::size_t(i)] = std::max(sum, 0.0);
    }
    for (Index j = 0; j <= t; ++j) {
      double sum = double(weights.logits_bias[j]);
      for (Index i = 0; i < width; ++i) sum += double(weights.logits(j, i)) * hidden[std::size_t(i)];
      logits[std::size_t(j)] = float(sum);
    }
    return logits;
  }

  static HeadSequence<const float> none(Index length) { return {nullptr, length, heads, 0}; }
  Index state_bytes() const { return state.bytes(); }

  Rng rng{5};
  Tensor query, value, output;
  SynthesizerCoreWeights<float> weights;
  SynthesizerCore<float> core;
  KeyValueCache<float> state;
  Workspace workspace;
};

// The hidden units are what queries and keys are in attention.
Work dense_work(Index length) {
  return work::causal_attention(length, heads, heads, width) +
         Work{.flops = 2.0 * double(length * heads * width * width)};
}
Work random_work(Index length) {
  const double pairs = double(heads) * double(length) * double(length + 1) / 2;
  return {
      .flops = 2 * pairs * width, .exps = pairs, .streamed_bytes = 4 * pairs + 8.0 * double(length * heads * width)};
}
Work step_work() { return work::attention_step(2048, heads, heads, width); }

const auto dense = [](Index tokens, int threads) {
  return std::make_shared<Data>(SynthesizerForm::dense, tokens, threads);
};
const auto random = [](Index tokens, int threads) {
  return std::make_shared<Data>(SynthesizerForm::random, tokens, threads);
};
const bool registered = add_core("synthesizer", dense, dense_work, step_work()) &&
                        add_core_sequences("synthesizer/random", random, random_work, {2048});

}  // namespace
}  // namespace seqmix::bench
