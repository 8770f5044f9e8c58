// What layers around an attention with a constant state share: projections, core, projection; causal or bidirectional.
//
//   Glossary  L length   D channels   H heads   K, V key and value width of one head
#pragma once

#include <cmath>
#include <seqmix/core/mixer.hpp>
#include <seqmix/core/random.hpp>
#include <seqmix/parts/linear.hpp>

namespace seqmix::inline SEQMIX_ARCH {

/// The heads of a layer: H of queries, of which consecutive ones share one of the keys and values.
struct AttentionHeads {
  Index heads, key_value_heads, key_dim, value_dim;

  Index query_columns() const { return heads * key_dim; }
  Index key_columns() const { return key_value_heads * key_dim; }
};

/// Base of these layers. Beside what RecurrentMixerBase asks for, apart from advance, Derived provides
///
///   AttentionHeads heads() const;
///   Shape memory_shape() const;                                     what State is made from and State::check is given
///   void attend(State&, query, key, value, output, Workspace&, streams...) const   causal, on from the state
///   void attend(query, key, value, output, Workspace&) const                       or bidirectional
///
/// with query [L, H, K], key and value [L, key_value_heads, K or V], output [L, H, V], and may provide
///
///   void prepare(query, key) const;                                 changes them after the projection, some rows at a time
///   void finish(output) const;                                      the same before the projection of the output
template <class Derived, std::floating_point T, Direction way, class StateOf>
class AttentionLayer : public RecurrentMixerBase<Derived, T> {
  using Base = RecurrentMixerBase<Derived, T>;

 public:
  static constexpr Direction direction = way;
  static constexpr StateGrowth growth = StateGrowth::constant;
  using State = StateOf;

  Index channels() const { return self().config().channels; }

  /// y = mixer(x). x, y [L, D]. Throws std::invalid_argument on wrong shapes and overlapping views.
  void forward(ConstSequence<T> x, Sequence<T> y, Workspace& workspace) const {
    if constexpr (way == Direction::causal) {
      Base::forward(x, y, workspace);
    } else {
      internal::expect_input_output<T>(Derived::name, channels(), x, y);
      if (x.length() == 0) return;
      const auto frame = workspace.frame();
      mix(x, y, workspace, [&](const auto& query, const auto& key, const auto& value, const auto& output) {
        self().attend(query, key, value, output, workspace);
      });
    }
  }

  /// The state of no tokens.
  State initial_state() const
    requires(way == Direction::causal)
  {
    return State(self().memory_shape());
  }

  /// Throws std::invalid_argument unless the state has this mixer's shapes.
  void check_state(const State& state) const { state.check(Derived::name, self().memory_shape()); }

  template <class... Streams>
  void advance(const SequenceBatch<State>& batch, ConstSequence<T> x, Sequence<T> y, Workspace& workspace,
               const Streams&... streams) const {
    mix(x, y, workspace, [&](const auto& query, const auto& key, const auto& value, const auto& output) {
      for (Index b = 0; b < batch.size(); ++b) {
        const auto rows = [&](const auto& view) { return view.rows(batch.begin(b), batch.length(b)); };
        self().attend(batch.state(b), rows(query), rows(key), rows(value), rows(output), workspace, rows(streams)...);
      }
    });
  }

 protected:
  /// The keys [L, key_value_heads, K] of x, as projected.
  HeadSequence<T> project_key(ConstSequence<T> x, Workspace& workspace) const {
    const AttentionHeads of = self().heads();
    return input_.apply(x, workspace).columns(of.query_columns(), of.key_columns()).heads(of.key_value_heads);
  }

  Linear<T> input_;  // queries, keys and values, all heads of each
  Linear<T> output_;

 private:
  const Derived& self() const { return static_cast<const Derived&>(*this); }

  /// Projections around core(query, key, value, output).
  template <class Core>
  void mix(ConstSequence<T> x, Sequence<T> y, Workspace& workspace, Core&& core) const {
    const AttentionHeads of = self().heads();
    ColumnCutter<T> columns(input_.apply(x, workspace));
    const auto query = columns.next(of.query_columns()).heads(of.heads);
    const auto key = columns.next(of.key_columns()).heads(of.key_value_heads);
    const auto value = columns.rest().heads(of.key_value_heads);
    if constexpr (requires { self().prepare(query, key); }) {
      workspace.for_row_blocks(x.length(), [&](Index begin, Index count) {
        self().prepare(query.rows(begin, count), key.rows(begin, count));
      });
    }
    const auto mixed = workspace.heads<T>(x.length(), of.heads, of.value_dim);
    core(query, key, value, mixed);
    if constexpr (requires { self().finish(mixed); }) {
      workspace.for_row_blocks(x.length(), [&](Index begin, Index count) { self().finish(mixed.rows(begin, count)); });
    }
    output_.apply(mixed.flat(), y, workspace);
  }
};

}  // namespace seqmix::inline SEQMIX_ARCH
