// What the golden adapters of cores with queries, keys, values and a matrix memory share, and their layers' states.
#pragma once

#include <seqmix/engine/memory.hpp>
#include <seqmix/parts/convolved_streams.hpp>
#include <utility>

#include "support/golden.hpp"

namespace seqmix::test {

/// Reads input.q [L, H', K], .k, .v and .state.S, compares y and state.S. A derived adapter says how to run.
template <class T>
struct MemoryCoreGolden : GoldenRunner<T> {
  /// What run is given: rows begin .. begin + count - 1 of the streams, and the memory.
  struct Streams {
    HeadSequence<const T> query, key, value;
    MemoryView<T> memory;
    HeadSequence<T> output;
  };

  explicit MemoryCoreGolden(GoldenCase& golden, const std::string& state_name = "S")
      : key_dim(golden.config().integer("key_dim")),
        value_dim(golden.config().integer("value_dim")),
        query(golden.array<T>("input.q", {-1, -1, key_dim})),
        key(golden.array<T>("input.k", {query.size(0), -1, key_dim})),
        value(golden.array<T>("input.v", {query.size(0), -1, value_dim})),
        heads(golden.config().integer("v_heads", golden.config().integer("heads"))),
        scale(T(golden.config().number("scale"))),
        output({query.size(0), heads, value_dim}),
        initial({heads, key_dim, value_dim}),
        state("state." + state_name) {
    if (golden.has("input." + state)) initial = golden.array<T>("input." + state, initial.shape());
  }
  Index length() const override { return query.size(0); }
  void reset() override { memory = initial; }
  void run(Index begin, Index count) override {
    run_rows(begin, count,
             {query.heads().rows(begin, count),
              key.heads().rows(begin, count),
              value.heads().rows(begin, count),
              {memory.data(), heads, key_dim, value_dim},
              output.heads().rows(begin, count)});
  }
  void collect(GoldenOutputs& outputs) const override {
    outputs.add("y", output);
    outputs.add(state, memory);
  }

  virtual void run_rows(Index begin, Index count, const Streams& streams) = 0;

  Index key_dim, value_dim;
  GoldenArray<T> query, key, value;
  Index heads;
  T scale;
  GoldenArray<T> output, initial, memory;
  std::string state;
};

/// The sizes of the convolutions of a layer's config.
inline ConvolvedStreamsConfig convolution_of(GoldenConfig& config) {
  return {.convolve = config.boolean("use_short_conv"),
          .width = config.integer("conv_size", 4),
          .bias = config.boolean("conv_bias", false)};
}

/// Files hold histories of convolutions as [channels, width], states as [width, channels].
template <class T>
Tensor<T> transposed(const Tensor<T>& from) {
  const Index rows = from.shape()[0], columns = from.shape()[1];
  Tensor<T> to({columns, rows});
  for (Index i = 0; i < rows; ++i) {
    for (Index j = 0; j < columns; ++j) to[std::size_t(j * rows + i)] = from[std::size_t(i * columns + j)];
  }
  return to;
}

/// What files call the fields of a ConvolvedMemoryState.
struct ConvolvedMemoryNames {
  std::string memory = "S", query = "conv_q", key = "conv_k", value = "conv_v";
};

/// Reads the histories of convolutions that a layer's state holds in its fields query, key and value.
template <class State>
void read_histories(GoldenCase& golden, const ConvolvedMemoryNames& names, State& state) {
  const auto history = [&](const std::string& name, auto& field) {
    if (!golden.has("input.state." + name)) return;
    std::remove_cvref_t<decltype(field)> given({field.shape()[1], field.shape()[0]});
    golden.copy("input.state." + name, given);
    field = transposed(given);
  };
  history(names.query, state.query), history(names.key, state.key), history(names.value, state.value);
}
template <class State>
void collect_histories(const State& state, const ConvolvedMemoryNames& names, GoldenOutputs& outputs) {
  const auto history = [&](const std::string& name, const auto& field) {
    if (!field.empty()) outputs.add("state." + name, transposed(field));
  };
  history(names.query, state.query), history(names.key, state.key), history(names.value, state.value);
}

/// A layer whose state is a ConvolvedMemoryState.
template <class M>
struct ConvolvedLayerGolden : GoldenLayer<M> {
  using Base = GoldenLayer<M>;
  using T = typename M::Scalar;
  using State = typename M::State;

  ConvolvedLayerGolden(GoldenCase& golden, const typename M::Config& config, ConvolvedMemoryNames state_names = {})
      : Base(golden, config), names(std::move(state_names)) {}
  ConvolvedLayerGolden(GoldenCase& golden, const typename M::Config& config, typename M::Weights weights,
                       ConvolvedMemoryNames state_names = {})
      : Base(golden, config, std::move(weights)), names(std::move(state_names)) {}

  void read_state(GoldenCase& golden, State& state) override {
    if (golden.has("input.state." + names.memory)) golden.copy("input.state." + names.memory, state.memory);
    read_histories(golden, names, state);
  }
  void collect_state(const State& state, GoldenOutputs& outputs) const override {
    outputs.add("state." + names.memory, state.memory);
    collect_histories(state, names, outputs);
  }

  ConvolvedMemoryNames names;
};

}  // namespace seqmix::test
