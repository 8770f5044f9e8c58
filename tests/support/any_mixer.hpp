// Mixers and their states behind virtual functions, so that the laws are compiled once per scalar and not once per mixer.
#pragma once

#include <concepts>
#include <cstddef>
#include <cstring>
#include <memory>
#include <seqmix/core/buffer.hpp>
#include <seqmix/core/mixer.hpp>
#include <seqmix/io/state.hpp>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "fields.hpp"

namespace seqmix::test {

/// A state of some mixer.
class AnyState {
 public:
  virtual ~AnyState() = default;
  virtual std::unique_ptr<AnyState> copy() const = 0;

  virtual FieldList fields() const = 0;

  /// Every field that visit names, to the bit.
  std::vector<std::byte> bytes() const { return fields().bytes(); }

  /// Number of arrays among the fields.
  Index arrays() const { return fields().arrays(); }

  /// Makes array `which` longer: a state of a mixer with other sizes.
  virtual void lengthen(Index which) = 0;

  /// Gives array `which` another shape of as many numbers: a state of a mixer whose sizes have the same product. False where
  /// it has no shape, or that one already.
  virtual bool reshape(Index which) = 0;
};

/// A state as what it is. The caller knows its type.
template <class State>
State& state_cast(AnyState& state);
template <class State>
const State& state_cast(const AnyState& state);

/// A mixer for scalar T. Functions that this mixer doesn't have throw std::logic_error; recurrent() and batched() say
/// which these are.
template <class T>
class AnyMixer {
 public:
  virtual ~AnyMixer() = default;

  virtual std::string_view name() const = 0;  ///< the operator id that messages begin with
  virtual Index channels() const = 0;
  virtual Direction direction() const = 0;
  virtual Causality causality() const = 0;
  virtual bool recurrent() const = 0;  ///< has states, prefill and step
  virtual bool batched() const = 0;    ///< has prefill and step for several sequences
  virtual StateGrowth growth() const = 0;

  virtual void forward(ConstSequence<T> x, Sequence<T> y, Workspace& workspace) const = 0;
  virtual std::unique_ptr<AnyState> initial_state() const = 0;
  virtual bool reserve(AnyState& state, Index tokens) const = 0;         ///< false if the mixer has no such function
  virtual std::vector<std::byte> save(const AnyState& state) const = 0;  ///< io/state.hpp
  virtual std::unique_ptr<AnyState> load(std::span<const std::byte> bytes) const = 0;  ///< io/state.hpp
  virtual void prefill(AnyState& state, ConstSequence<T> x, Sequence<T> y, Workspace& workspace) const = 0;
  virtual void step(AnyState& state, ConstToken<T> x, Token<T> y, Workspace& workspace) const = 0;

  /// At most 16 sequences; allocates nothing by itself.
  virtual void prefill(std::span<AnyState* const> states, std::span<const Index> offsets, ConstSequence<T> x,
                       Sequence<T> y, Workspace& workspace) const = 0;
  virtual void step(std::span<AnyState* const> states, ConstSequence<T> x, Sequence<T> y,
                    Workspace& workspace) const = 0;
};

namespace detail {

template <class T>
void lengthen(Buffer<T>& field) {
  field.push_back({});
}
template <class T>
void lengthen(Tensor<T>& field) {
  Index sizes[Shape::max_rank];
  const Index rank = field.shape().rank();
  for (Index axis = 0; axis < rank; ++axis) sizes[axis] = field.shape()[axis];
  ++sizes[rank - 1];
  field = Tensor<T>(Shape(std::span<const Index>(sizes, std::size_t(rank))));
}

template <class State>
class StateOf final : public AnyState {
 public:
  explicit StateOf(State initial) : value(std::move(initial)) {}

  std::unique_ptr<AnyState> copy() const override { return std::make_unique<StateOf>(value); }

  FieldList fields() const override { return fields_of(value); }

  void lengthen(Index which) override {
    Index array = 0;
    visit_fields(value, [&](std::string_view, auto& field) {
      if constexpr (!std::is_arithmetic_v<std::remove_cvref_t<decltype(field)>>) {
        if (array++ == which) detail::lengthen(field);
      }
    });
  }

  bool reshape(Index which) override {
    bool done = false;
    Index array = 0;
    visit_fields(value, [&](std::string_view, auto& field) {
      using Field = std::remove_cvref_t<decltype(field)>;
      if constexpr (!std::is_arithmetic_v<Field>) {
        if (array++ != which) return;
        if constexpr (requires { field.shape(); }) {
          const Shape line{Index(field.size()), 1, 1, 1};  // few states have four dimensions
          done = !(field.shape() == line);
          field = Field(line);
        }
      }
    });
    return done;
  }

  State value;
};

template <Mixer M>
class MixerOf final : public AnyMixer<typename M::Scalar> {
 public:
  using T = typename M::Scalar;

  MixerOf(std::string name, const typename M::Config& config, const typename M::Weights& weights)
      : name_(std::move(name)), mixer_(config, weights) {
    if constexpr (requires { std::string_view(M::name); }) name_ = M::name;
  }

  const M& mixer() const { return mixer_; }
  std::string_view name() const override { return name_; }
  Index channels() const override { return mixer_.channels(); }
  Direction direction() const override { return M::direction; }
  Causality causality() const override { return causality_of<M>; }
  bool recurrent() const override { return RecurrentMixer<M>; }
  bool batched() const override { return has_batches; }
  StateGrowth growth() const override {
    if constexpr (RecurrentMixer<M>) return M::growth;
    return StateGrowth::constant;
  }

  void forward(ConstSequence<T> x, Sequence<T> y, Workspace& workspace) const override {
    mixer_.forward(x, y, workspace);
  }

  std::unique_ptr<AnyState> initial_state() const override {
    if constexpr (RecurrentMixer<M>) {
      return std::make_unique<StateOf<typename M::State>>(mixer_.initial_state());
    } else {
      missing();
    }
  }
  bool reserve([[maybe_unused]] AnyState& state, [[maybe_unused]] Index tokens) const override {
    if constexpr (RecurrentMixer<M>) {
      if constexpr (requires { mixer_.reserve(state_of(state), tokens); }) {
        mixer_.reserve(state_of(state), tokens);
        return true;
      } else if constexpr (requires { state_of(state).reserve(tokens); }) {
        state_of(state).reserve(tokens);
        return true;
      }
    }
    return false;
  }
  std::vector<std::byte> save([[maybe_unused]] const AnyState& state) const override {
    if constexpr (RecurrentMixer<M>) {
      return save_state(mixer_, state_of(state));
    } else {
      missing();
    }
  }
  std::unique_ptr<AnyState> load([[maybe_unused]] std::span<const std::byte> bytes) const override {
    if constexpr (RecurrentMixer<M>) {
      return std::make_unique<StateOf<typename M::State>>(load_state(mixer_, bytes));
    } else {
      missing();
    }
  }
  void prefill([[maybe_unused]] AnyState& state, [[maybe_unused]] ConstSequence<T> x, [[maybe_unused]] Sequence<T> y,
               [[maybe_unused]] Workspace& workspace) const override {
    if constexpr (RecurrentMixer<M>) {
      mixer_.prefill(state_of(state), x, y, workspace);
    } else {
      missing();
    }
  }
  void step([[maybe_unused]] AnyState& state, [[maybe_unused]] ConstToken<T> x, [[maybe_unused]] Token<T> y,
            [[maybe_unused]] Workspace& workspace) const override {
    if constexpr (RecurrentMixer<M>) {
      mixer_.step(state_of(state), x, y, workspace);
    } else {
      missing();
    }
  }
  void prefill([[maybe_unused]] std::span<AnyState* const> states, [[maybe_unused]] std::span<const Index> offsets,
               [[maybe_unused]] ConstSequence<T> x, [[maybe_unused]] Sequence<T> y,
               [[maybe_unused]] Workspace& workspace) const override {
    if constexpr (has_batches) {
      with_states(states, [&](auto typed) { mixer_.prefill(typed, offsets, x, y, workspace); });
    } else {
      missing();
    }
  }
  void step([[maybe_unused]] std::span<AnyState* const> states, [[maybe_unused]] ConstSequence<T> x,
            [[maybe_unused]] Sequence<T> y, [[maybe_unused]] Workspace& workspace) const override {
    if constexpr (has_batches) {
      with_states(states, [&](auto typed) { mixer_.step(typed, x, y, workspace); });
    } else {
      missing();
    }
  }

 private:
  static constexpr bool has_batches = [] {
    if constexpr (RecurrentMixer<M>) {
      return requires(const M& mixer, std::span<typename M::State* const> states, std::span<const Index> offsets,
                      ConstSequence<T> x, Sequence<T> y, Workspace& workspace) {
        mixer.prefill(states, offsets, x, y, workspace);
        mixer.step(states, x, y, workspace);
      };
    }
    return false;
  }();

  [[noreturn]] void missing() const { throw std::logic_error(name_ + " has no such function"); }

  // The laws hand back what initial_state gave them.
  static auto& state_of(AnyState& state) { return state_cast<typename M::State>(state); }
  static const auto& state_of(const AnyState& state) { return state_cast<typename M::State>(state); }

  template <class Call>
  static void with_states(std::span<AnyState* const> states, Call call) {
    typename M::State* typed[16];
    if (states.size() > std::size(typed)) throw std::logic_error("AnyMixer: at most 16 sequences in a batch");
    for (std::size_t b = 0; b < states.size(); ++b) typed[b] = &state_of(*states[b]);
    call(std::span<typename M::State* const>(typed, states.size()));
  }

  std::string name_;
  M mixer_;
};

}  // namespace detail

template <class State>
State& state_cast(AnyState& state) {
  return static_cast<detail::StateOf<State>&>(state).value;
}
template <class State>
const State& state_cast(const AnyState& state) {
  return static_cast<const detail::StateOf<State>&>(state).value;
}

/// M(config, weights) behind virtual functions. `name` is used where the mixer's class doesn't name itself.
template <Mixer M>
std::unique_ptr<detail::MixerOf<M>> make_any(std::string name, const typename M::Config& config,
                                             const typename M::Weights& weights) {
  return std::make_unique<detail::MixerOf<M>>(std::move(name), config, weights);
}

}  // namespace seqmix::test
