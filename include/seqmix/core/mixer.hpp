// What a sequence mixer is: the concepts that every operator models, and the base class that spares it the repetition.
//
// A mixer maps x [length, channels] to y [length, channels]; row t of y may depend on every row of x, or, when the mixer
// is causal, on rows 0 .. t. A causal mixer whose dependence on the past fits a state is recurrent: it can continue a
// sequence from a state, piece by piece or token by token, and all ways to cut a sequence give the same result.
#pragma once

#include <algorithm>
#include <concepts>
#include <seqmix/core/error.hpp>
#include <seqmix/core/parameters.hpp>
#include <seqmix/core/tensor.hpp>
#include <seqmix/core/view.hpp>
#include <seqmix/core/workspace.hpp>
#include <span>
#include <string_view>

namespace seqmix {

/// How the state grows with the number of tokens seen.
enum class StateGrowth {
  constant,  ///< not at all
  window,    ///< up to a bound
  linear     ///< without bound, in proportion
};

/// Which tokens a row of the output may depend on.
enum class Direction {
  causal,        ///< itself and those before it
  bidirectional  ///< all
};

/// Whether rows of a causal mixer's output keep their bits when later rows of the input change.
enum class Causality {
  exact,  ///< all of them
  rounded  ///< those of forward and prefill may change by rounding errors relative to the largest rows, because they pass
           ///< through Fourier transforms of many rows; and where a later number is not finite, they need not be
};

/// A sequence-mixing operator with its weights.
///
/// Semantic requirements: forward is pure (the same bits for the same x, from any thread) and total (it writes all of
/// y, whatever y held; length 0 is a no-op). It throws std::invalid_argument, with y untouched, when x or y is not
/// [length, channels()], when their lengths differ, or when they overlap.
template <class M>
concept Mixer = std::floating_point<typename M::Scalar> &&
                requires {
                  typename M::Config;
                  typename M::Weights;
                } &&
                requires(const M& mixer, ConstSequence<typename M::Scalar> x, Sequence<typename M::Scalar> y,
                         Workspace& workspace) {
                  { mixer.channels() } -> std::same_as<Index>;
                  { M::direction } -> std::convertible_to<Direction>;
                  mixer.forward(x, y, workspace);
                };

/// A mixer whose rows y[0 .. t] never depend on x[t + 1 ..], to the bit unless causality_of<M> is rounded.
template <class M>
concept CausalMixer = Mixer<M> && (M::direction == Direction::causal);

/// M::causality, or exact where M has no such member.
template <class M>
inline constexpr Causality causality_of = Causality::exact;
template <class M>
  requires requires {
    { M::causality } -> std::convertible_to<Causality>;
  }
inline constexpr Causality causality_of<M> = M::causality;

/// A causal mixer that continues a sequence from a state.
///
/// Semantic requirements: a State is a copyable value, and a copy continues independently with the same bits.
/// prefill(state, x, y) over any cuts of a sequence, empty pieces included, mixed with step(state, token, token), gives
/// forward's rows up to rounding, and leaves states that continue alike. step allocates nothing once its workspace is
/// warm, but for states that grow past what was reserved. A call that throws leaves state and y as they were.
template <class M>
concept RecurrentMixer = CausalMixer<M> && std::copyable<typename M::State> &&
                         requires(const M& mixer, typename M::State& state, ConstSequence<typename M::Scalar> x,
                                  Sequence<typename M::Scalar> y, ConstToken<typename M::Scalar> x_token,
                                  Token<typename M::Scalar> y_token, Workspace& workspace) {
                           { M::growth } -> std::convertible_to<StateGrowth>;
                           { mixer.initial_state() } -> std::same_as<typename M::State>;
                           mixer.prefill(state, x, y, workspace);
                           mixer.step(state, x_token, y_token, workspace);
                         };

/// Several sequences, one after the other in packed rows: sequence b is rows offsets[b] .. offsets[b + 1] - 1, and
/// states[b] is its state.
template <class State>
struct SequenceBatch {
  std::span<State* const> states;
  std::span<const Index> offsets;  // states.size() + 1 of them, ascending

  Index size() const { return Index(states.size()); }
  Index begin(Index b) const { return offsets[std::size_t(b)]; }
  Index length(Index b) const { return offsets[std::size_t(b) + 1] - offsets[std::size_t(b)]; }
  Index total() const { return offsets.empty() ? 0 : offsets.back(); }
  State& state(Index b) const { return *states[std::size_t(b)]; }
};

namespace internal {

/// Throws unless x and y are [length, channels] of the same length and share no memory.
template <class T>
void expect_input_output(std::string_view operation, Index channels, const Sequence<const T>& x, const Sequence<T>& y) {
  expect_shape(operation, "x", {x.length(), channels}, x);
  expect_shape(operation, "y", {x.length(), channels}, y);
  expect(y.length() <= 1 || y.stride() >= channels || y.stride() <= -channels, operation, "y",
         "has rows that overlap each other: its stride is smaller than its channels");
  expect_disjoint(operation, "y", y, "x", x);
}

}  // namespace internal

/// Base of the recurrent mixers: gives Derived the whole public interface (forward, prefill and step, for one sequence
/// and for batches) in terms of these members that Derived provides:
///
///   static constexpr std::string_view name;                      the operator id, for messages
///   static constexpr StateGrowth growth;
///   static constexpr Causality causality;                        only where it is rounded
///   struct Config, struct Weights (with visit, see core/parameters.hpp), a constructor (Config, const Weights&), and
///     static Weights random_weights(const Config&, Rng&)
///   struct State with visit (see core/parameters.hpp), which calls visitor("name", field) for every Tensor<T> and Index
///   Index channels() const;
///   State initial_state() const;
///   void check_state(const State&) const;                        throws std::invalid_argument if it isn't one of this mixer's
///   void advance(SequenceBatch<State>, ConstSequence<T> x, Sequence<T> y, Workspace&) const;
///   void reserve(SequenceBatch<State>) const;                    only where states grow: makes room for all rows of a call
///
/// advance runs every sequence of the batch on from its state. It is called with checked arguments only, x and y
/// disjoint and with at least one row, inside an open frame of the workspace; sequences of length 0 may occur. Projections
/// apply to all rows at once, so a batch of steps is a product of matrices. Long inputs are cut: no call to advance gets
/// more than rows_per_pass rows, so that what it computes on the way stays in the caches, and scratch memory does not
/// grow with the length.
///
/// An invalid argument is found before anything is written. Memory that runs out (std::bad_alloc) is not: the states of the
/// call are then valid, but which rows they have seen is unspecified. A warm workspace and reserved states rule it out.
template <class Derived, std::floating_point T>
class RecurrentMixerBase {
 public:
  using Scalar = T;
  static constexpr Direction direction = Direction::causal;

  /// Most rows that one call of advance gets. A derived class may set another number.
  static constexpr Index rows_per_pass = 512;

  /// y = mixer(x) for a whole sequence from the empty state. x, y [length, channels]. Allocates the states that it
  /// starts from, and nothing else once `workspace` is warm.
  /// Throws std::invalid_argument on wrong shapes and overlapping views.
  void forward(ConstSequence<T> x, Sequence<T> y, Workspace& workspace) const { forward_with(x, y, workspace); }

  /// The next rows of a sequence: reads the state left by the rows before, and leaves that after the last row.
  /// x, y [length, channels], any length. Throws std::invalid_argument on wrong shapes, on overlapping views, and on a
  /// state that isn't one of this mixer's.
  template <class D = Derived>
  void prefill(typename D::State& state, ConstSequence<T> x, Sequence<T> y, Workspace& workspace) const {
    prefill_with(state, x, y, workspace);
  }

  /// The next token of a sequence. x, y [channels]. Allocates nothing once `workspace` is warm, but for states that grow
  /// past what was reserved. Throws as prefill does.
  template <class D = Derived>
  void step(typename D::State& state, ConstToken<T> x, Token<T> y, Workspace& workspace) const {
    prefill(state, ConstSequence<T>(x), Sequence<T>(y), workspace);
  }

  /// The next rows of several sequences at once, in packed rows: rows offsets[b] .. offsets[b + 1] - 1 of x and y belong
  /// to the sequence of states[b]. offsets must ascend from 0 to x.length(), one more of them than of states, and no
  /// state may appear twice. Throws as prefill does.
  template <class D = Derived>
  void prefill(std::span<typename D::State* const> states, std::span<const Index> offsets, ConstSequence<T> x,
               Sequence<T> y, Workspace& workspace) const {
    prefill_with(states, offsets, x, y, workspace);
  }

  /// The next token of several sequences: row b of x and y [states.size(), channels] belongs to states[b]. Throws as
  /// prefill does.
  template <class D = Derived>
  void step(std::span<typename D::State* const> states, ConstSequence<T> x, Sequence<T> y, Workspace& workspace) const {
    step_with(states, x, y, workspace);
  }

 protected:
  // The same for mixers with further streams beside x and y: `streams` are sequences with a row for every row of x, which
  // the derived class has checked. advance gets them after its workspace, cut as x is.

  template <class... Streams>
  void forward_with(ConstSequence<T> x, Sequence<T> y, Workspace& workspace, const Streams&... streams) const {
    internal::expect_input_output<T>(Derived::name, self().channels(), x, y);
    auto state = self().initial_state();
    advance_one(state, x, y, workspace, streams...);
  }

  template <class State, class... Streams>
  void prefill_with(State& state, ConstSequence<T> x, Sequence<T> y, Workspace& workspace,
                    const Streams&... streams) const {
    internal::expect_input_output<T>(Derived::name, self().channels(), x, y);
    self().check_state(state);
    advance_one(state, x, y, workspace, streams...);
  }

  template <class State, class... Streams>
  void prefill_with(std::span<State* const> states, std::span<const Index> offsets, ConstSequence<T> x, Sequence<T> y,
                    Workspace& workspace, const Streams&... streams) const {
    internal::expect_input_output<T>(Derived::name, self().channels(), x, y);
    expect(offsets.size() == states.size() + 1, Derived::name, "offsets", "must be one more than states");
    expect(offsets.front() == 0 && offsets.back() == x.length(), Derived::name, "offsets",
           "must begin with 0 and end with the length of x");
    for (std::size_t b = 0; b < states.size(); ++b) {
      expect(offsets[b] <= offsets[b + 1], Derived::name, "offsets", "must ascend");
      for (std::size_t other = 0; other < b; ++other) {
        expect(states[b] != states[other], Derived::name, "states", "the same state is given twice");
      }
      self().check_state(*states[b]);
    }
    if (x.length() == 0) return;
    const auto frame = workspace.frame();
    advance_passes(SequenceBatch<State>{states, offsets}, x, y, workspace, streams...);
  }

  template <class State, class... Streams>
  void step_with(std::span<State* const> states, ConstSequence<T> x, Sequence<T> y, Workspace& workspace,
                 const Streams&... streams) const {
    const auto frame = workspace.frame();
    const auto offsets = workspace.take<Index>(Index(states.size()) + 1);
    for (std::size_t b = 0; b < offsets.size(); ++b) offsets[b] = Index(b);
    expect_shape(Derived::name, "x", {Index(states.size()), self().channels()}, x);
    prefill_with(states, std::span<const Index>(offsets), x, y, workspace, streams...);
  }

 private:
  const Derived& self() const { return static_cast<const Derived&>(*this); }

  template <class State, class... Streams>
  void advance_one(State& state, ConstSequence<T> x, Sequence<T> y, Workspace& workspace,
                   const Streams&... streams) const {
    if (x.length() == 0) return;
    const auto frame = workspace.frame();
    State* const states[] = {&state};
    const Index offsets[] = {0, x.length()};
    advance_passes(SequenceBatch<State>{states, offsets}, x, y, workspace, streams...);
  }

  /// Calls advance for at most rows_per_pass rows at a time, with the sequences that have rows among them.
  template <class State, class... Streams>
  void advance_passes(const SequenceBatch<State>& batch, ConstSequence<T> x, Sequence<T> y, Workspace& workspace,
                      const Streams&... streams) const {
    // Before the first pass: should memory run out here, nothing has changed yet.
    if constexpr (requires { self().reserve(batch); }) self().reserve(batch);
    const Index total = batch.total();
    if (total <= Derived::rows_per_pass) {
      self().advance(batch, x, y, workspace, streams...);
      return;
    }
    const auto states = workspace.take<State*>(batch.size());
    const auto offsets = workspace.take<Index>(batch.size() + 1);
    for (Index begin = 0, first = 0; begin < total; begin += Derived::rows_per_pass) {
      const Index end = std::min(begin + Derived::rows_per_pass, total);
      while (batch.begin(first) + batch.length(first) <= begin) ++first;
      Index count = 0;
      for (Index b = first; b < batch.size() && batch.begin(b) < end; ++b, ++count) {
        states[std::size_t(count)] = &batch.state(b);
        offsets[std::size_t(count)] = std::max(batch.begin(b), begin) - begin;
      }
      offsets[std::size_t(count)] = end - begin;
      const auto frame = workspace.frame();
      self().advance(SequenceBatch<State>{states.first(std::size_t(count)), offsets.first(std::size_t(count) + 1)},
                     x.rows(begin, end - begin), y.rows(begin, end - begin), workspace,
                     streams.rows(begin, end - begin)...);
    }
  }
};

}  // namespace seqmix
