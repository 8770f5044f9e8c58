// What layers with short convolutions share: queries, keys and values that pass a convolution and an activation on their
// way from the projection to the memory, and the state that goes with them.
//
//   Source    Yang et al. 2023, arXiv:2312.06635; Yang et al. 2024, arXiv:2406.06484, 2412.06464; the layers of
//             fla-org/flash-linear-attention
#pragma once

#include <cmath>
#include <seqmix/core/error.hpp>
#include <seqmix/core/parameters.hpp>
#include <seqmix/core/random.hpp>
#include <seqmix/parts/feature_map.hpp>
#include <seqmix/parts/gate.hpp>
#include <seqmix/parts/short_convolution.hpp>
#include <string>
#include <string_view>

namespace seqmix::inline SEQMIX_ARCH {

/// The state of a mixer with a matrix memory behind short convolutions. A mixer without convolutions leaves their fields
/// empty.
template <class T>
struct ConvolvedMemoryState {
  Tensor<T> memory;             // [heads, key_dim, value_dim]
  Tensor<T> query, key, value;  // [width, channels], the last inputs of the convolutions, oldest first

  template <class Self, class Visitor>
  static void visit(Self& self, Visitor&& visitor) {
    visitor("memory", self.memory), visitor("query", self.query), visitor("key", self.key),
        visitor("value", self.value);
  }
};

/// The weights of the convolutions of queries, keys and values; all are empty where there are none.
template <class T>
struct ConvolvedStreamsWeights {
  Matrix<T> query, key, value;                 // [channels of the stream, width]
  Vector<T> query_bias, key_bias, value_bias;  // [channels of the stream], or empty

  /// Calls visitor for all six, under their names in checkpoints.
  template <class Self, class Visitor>
  static void visit_all(Self& self, Visitor& visitor) {
    visitor("q_conv1d.weight", self.query, Presence::optional);
    visitor("q_conv1d.bias", self.query_bias, Presence::optional);
    visitor("k_conv1d.weight", self.key, Presence::optional);
    visitor("k_conv1d.bias", self.key_bias, Presence::optional);
    visitor("v_conv1d.weight", self.value, Presence::optional);
    visitor("v_conv1d.bias", self.value_bias, Presence::optional);
  }
};

/// The convolutions' sizes.
struct ConvolvedStreamsConfig {
  bool convolve = true;
  Index width = 4;
  bool bias = false;
};

/// What is applied to a stream on its way: nothing, silu, relu, or elu + 1.
enum class StreamActivation { none, swish, relu, elu1 };

/// x = activation(x) for every element, in place.
template <class T>
void apply_stream_activation(Sequence<T> x, StreamActivation activation) {
  switch (activation) {
    case StreamActivation::none:
      return;
    case StreamActivation::swish:
      return apply_silu(x);
    case StreamActivation::relu:
      return apply_activation(x, feature_map::Relu{});
    case StreamActivation::elu1:
      return apply_activation(x, feature_map::Elu1{});
  }
}

/// Queries, keys and values of one pass, [length, channels of the stream].
template <class T>
struct Streams {
  Sequence<T> query, key, value;
};

/// The convolutions and activations of queries, keys and values.
template <std::floating_point T>
class ConvolvedStreams {
 public:
  ConvolvedStreams() = default;

  /// Streams of key_channels (queries: query_channels) and value_channels; queries and keys are activated by `activation`,
  /// values by `value_activation`. Allocates. Throws std::invalid_argument, in the name of `operation`, unless the shapes
  /// of `weights` follow from the others.
  ConvolvedStreams(std::string_view operation, const ConvolvedStreamsConfig& config, Index query_channels,
                   Index key_channels, Index value_channels, const ConvolvedStreamsWeights<T>& weights,
                   StreamActivation activation, StreamActivation value_activation)
      : operation_(operation),
        convolves_(config.convolve),
        activation_(activation),
        value_activation_(value_activation) {
    if (!convolves_) return;
    expect(config.width > 0, operation, "config.convolution.width", "must be positive");
    const auto convolution = [&](std::string_view stream, Index channels, const Matrix<T>& weight,
                                 const Vector<T>& bias, StreamActivation after) {
      expect_tensor(operation, std::string(stream) + "_conv1d.weight", {channels, config.width}, weight);
      if (config.bias) expect_tensor(operation, std::string(stream) + "_conv1d.bias", {channels}, bias);
      return ShortConvolution<T>(
          operation, weight, config.bias ? bias : Vector<T>(),
          after == StreamActivation::swish ? ConvolutionActivation::swish : ConvolutionActivation::none);
    };
    query_ = convolution("q", query_channels, weights.query, weights.query_bias, activation);
    key_ = convolution("k", key_channels, weights.key, weights.key_bias, activation);
    value_ = convolution("v", value_channels, weights.value, weights.value_bias, value_activation);
  }

  /// Uniform in +-width^-1/2, as torch initialises convolutions.
  static ConvolvedStreamsWeights<T> random_weights(const ConvolvedStreamsConfig& config, Index query_channels,
                                                   Index key_channels, Index value_channels, Rng& rng) {
    if (!config.convolve) return {};
    const double limit = std::pow(double(config.width), -0.5);
    const auto weight = [&](Index channels) { return uniform_matrix<T>(channels, config.width, limit, rng); };
    const auto bias = [&](Index channels) { return uniform_vector<T>(config.bias ? channels : 0, -limit, limit, rng); };
    return {weight(query_channels), weight(key_channels), weight(value_channels),
            bias(query_channels),   bias(key_channels),   bias(value_channels)};
  }

  /// The empty state with a memory of this shape.
  ConvolvedMemoryState<T> initial_state(const Shape& memory) const {
    return {Tensor<T>(memory), query_.initial_state(), key_.initial_state(), value_.initial_state()};
  }

  /// Throws std::invalid_argument unless the state is like that of initial_state.
  void check_state(const ConvolvedMemoryState<T>& state, const Shape& memory) const {
    expect_shape(operation_, "state.memory", memory, state.memory.shape());
    check_histories(state);
  }

  /// Throws std::invalid_argument unless the fields query, key and value of a state are like those of initial_state.
  template <class State>
  void check_histories(const State& state) const {
    query_.check_state(operation_, "state.query", state.query);
    key_.check_state(operation_, "state.key", state.key);
    value_.check_state(operation_, "state.value", state.value);
  }

  /// Convolves and activates the projected streams, [total, channels] each: in place without convolutions, else into
  /// `workspace`, valid until the caller's frame ends.
  template <class State>
  Streams<T> apply(const SequenceBatch<State>& batch, Streams<T> streams, Workspace& workspace) const {
    if (convolves_) {
      streams = {query_.apply(batch, &State::query, streams.query, workspace),
                 key_.apply(batch, &State::key, streams.key, workspace),
                 value_.apply(batch, &State::value, streams.value, workspace)};
    }
    workspace.for_row_blocks(streams.query.length(), [&](Index begin, Index count) {
      activate(streams.query.rows(begin, count), activation_);
      activate(streams.key.rows(begin, count), activation_);
      activate(streams.value.rows(begin, count), value_activation_);
    });
    return streams;
  }

 private:
  void activate(Sequence<T> x, StreamActivation activation) const {
    if (convolves_ && activation == StreamActivation::swish) return;  // the convolutions have done so
    apply_stream_activation(x, activation);
  }

  std::string_view operation_;
  bool convolves_ = false;
  StreamActivation activation_ = StreamActivation::none, value_activation_ = StreamActivation::none;
  ShortConvolution<T> query_, key_, value_;
};

}  // namespace seqmix::inline SEQMIX_ARCH
