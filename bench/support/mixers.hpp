// Benchmarks of whole mixers, derived from the Mixer concept: one line registers a mixer, and everything else follows.
//
//   forward/<operator>/channels:<D>/length:<L>/threads:<n>   a whole sequence
//   prefill/...                                              the same from and into a state
//   step/<operator>/channels:<D>/context:<L>/threads:<n>     the next token after a prefill of L tokens
//
// Before it is timed, a causal mixer's forward is compared with stepping over the first rows and the last, and a step
// with a prefill of several rows.
#pragma once

#include <concepts>
#include <functional>
#include <memory>
#include <seqmix/core/mixer.hpp>
#include <seqmix/core/parameters.hpp>
#include <seqmix/core/random.hpp>
#include <string>
#include <type_traits>
#include <utility>

#include "support/benchmark.hpp"

namespace seqmix::bench {

/// The standard size of the comparison.
inline constexpr Index standard_channels = 768, standard_heads = 12, standard_head_dim = 64;

/// A mixer in float with random weights, whatever its type. States are handed around as what they are: values of a type
/// that only the mixer knows.
class Layer {
 public:
  using State = std::shared_ptr<void>;
  virtual ~Layer() = default;
  virtual bool recurrent() const = 0;
  virtual Index parameters() const = 0;
  virtual void forward(Sequence<const float> x, Sequence<float> y, Workspace& workspace) const = 0;
  virtual State initial_state() const = 0;
  virtual State copy(const State& state) const = 0;
  virtual void reserve(const State& state, Index tokens) const = 0;
  virtual Index state_bytes(const State& state) const = 0;
  virtual void prefill(const State& state, Sequence<const float> x, Sequence<float> y, Workspace& workspace) const = 0;
  virtual void step(const State& state, Token<const float> x, Token<float> y, Workspace& workspace) const = 0;
};

/// What the Mixer concept doesn't tell. All members may be left out.
struct MixerTraits {
  bool quadratic = false;  // time grows with the square of the length: measured up to Effort::longest_attention only
  Index longest = PTRDIFF_MAX;                        // sequences that it takes
  std::function<Work(Index length)> core = {};        // minimum work between the projections; without it, none counts
  std::function<Work(Index context)> core_step = {};  // the same for a step, without its state
  Index filters = 0;  // parameters that no token is multiplied with: what filters are made of, before any sequence
  bool skims_state = false;  // a step touches little of its state, which then doesn't count
};

/// Type-independent part of add_mixer.
void add_layer(const std::string& name, Index channels, bool recurrent, StateGrowth growth, const MixerTraits& traits,
               const std::function<std::unique_ptr<Layer>()>& make);

namespace internal {

template <Mixer M>
class LayerOf final : public Layer {
 public:
  explicit LayerOf(const typename M::Config& config, typename M::Weights weights)
      : parameters_(parameter_count(weights)), mixer_(config, std::move(weights)) {}

  bool recurrent() const override { return RecurrentMixer<M>; }
  Index parameters() const override { return parameters_; }
  void forward(Sequence<const float> x, Sequence<float> y, Workspace& workspace) const override {
    mixer_.forward(x, y, workspace);
  }
  State initial_state() const override {
    if constexpr (RecurrentMixer<M>) {
      return std::make_shared<typename M::State>(mixer_.initial_state());
    } else {
      return nullptr;
    }
  }
  State copy(const State& state) const override {
    if constexpr (RecurrentMixer<M>) {
      return std::make_shared<typename M::State>(value(state));
    } else {
      return nullptr;
    }
  }
  void reserve([[maybe_unused]] const State& state, [[maybe_unused]] Index tokens) const override {
    if constexpr (RecurrentMixer<M>) {
      if constexpr (requires { mixer_.reserve(value(state), tokens); }) {
        mixer_.reserve(value(state), tokens);
      } else if constexpr (requires { value(state).reserve(tokens); }) {
        value(state).reserve(tokens);
      }
    }
  }
  Index state_bytes([[maybe_unused]] const State& state) const override {
    Index bytes = 0;
    if constexpr (RecurrentMixer<M>) {
      visit_fields(std::as_const(value(state)), [&](std::string_view, const auto& field) {
        if constexpr (std::is_arithmetic_v<std::remove_cvref_t<decltype(field)>>) {
          bytes += Index(sizeof(field));
        } else {
          bytes += Index(field.size()) * Index(sizeof(*field.data()));
        }
      });
    }
    return bytes;
  }
  void prefill([[maybe_unused]] const State& state, [[maybe_unused]] Sequence<const float> x,
               [[maybe_unused]] Sequence<float> y, [[maybe_unused]] Workspace& workspace) const override {
    if constexpr (RecurrentMixer<M>) mixer_.prefill(value(state), x, y, workspace);
  }
  void step([[maybe_unused]] const State& state, [[maybe_unused]] Token<const float> x, [[maybe_unused]] Token<float> y,
            [[maybe_unused]] Workspace& workspace) const override {
    if constexpr (RecurrentMixer<M>) mixer_.step(value(state), x, y, workspace);
  }

 private:
  static auto& value(const State& state) { return *static_cast<typename M::State*>(state.get()); }

  Index parameters_;
  M mixer_;
};

}  // namespace internal

/// Registers the benchmarks of mixer M, which computes in float, under `name` (the operator id, and what tells variants
/// apart). Returns true, so that a namespace-scope constant can call it.
template <Mixer M>
bool add_mixer(const std::string& name, const typename M::Config& config, const MixerTraits& traits = {}) {
  StateGrowth growth = StateGrowth::constant;
  if constexpr (RecurrentMixer<M>) growth = M::growth;
  add_layer(name, config.channels, RecurrentMixer<M>, growth, traits, [config]() -> std::unique_ptr<Layer> {
    Rng rng(7);
    return std::make_unique<internal::LayerOf<M>>(config, M::random_weights(config, rng));
  });
  return true;
}

}  // namespace seqmix::bench
