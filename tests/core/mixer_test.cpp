// The concepts: what models them and what doesn't.
#include <catch2/catch_test_macros.hpp>
#include <seqmix/core/mixer.hpp>
#include <seqmix/core/parameters.hpp>

namespace seqmix {
namespace {

struct Nothing {};

/// The least that is a Mixer, bidirectional.
struct Identity {
  using Scalar = float;
  using Config = Nothing;
  using Weights = Nothing;
  static constexpr Direction direction = Direction::bidirectional;
  Index channels() const { return 1; }
  void forward(ConstSequence<float>, Sequence<float>, Workspace&) const {}
};

struct Causal : Identity {
  static constexpr Direction direction = Direction::causal;
};

struct Recurrent : Causal {
  static constexpr StateGrowth growth = StateGrowth::constant;
  using State = Nothing;
  State initial_state() const { return {}; }
  void prefill(State&, ConstSequence<float>, Sequence<float>, Workspace&) const {}
  void step(State&, ConstToken<float>, Token<float>, Workspace&) const {}
};

struct IntegerScalar : Recurrent {
  using Scalar = int;
};
struct ForwardNotConst : Identity {
  void forward(ConstSequence<float>, Sequence<float>, Workspace&) {}
};
struct ChannelsOfWrongType : Identity {
  int channels() const { return 1; }
};
struct WithoutDirection {
  using Scalar = float;
  using Config = Nothing;
  using Weights = Nothing;
  Index channels() const { return 1; }
  void forward(ConstSequence<float>, Sequence<float>, Workspace&) const {}
};
struct StateThatCantBeCopied : Recurrent {
  struct State {
    State() = default;
    State(State&&) = default;
    State& operator=(State&&) = default;
  };
  State initial_state() const { return {}; }
  void prefill(State&, ConstSequence<float>, Sequence<float>, Workspace&) const {}
  void step(State&, ConstToken<float>, Token<float>, Workspace&) const {}
};
struct BidirectionalWithStates : Recurrent {
  static constexpr Direction direction = Direction::bidirectional;
};
struct WithoutStep : Causal {
  static constexpr StateGrowth growth = StateGrowth::constant;
  using State = Nothing;
  State initial_state() const { return {}; }
  void prefill(State&, ConstSequence<float>, Sequence<float>, Workspace&) const {}
};

static_assert(Mixer<Identity> && !CausalMixer<Identity> && !RecurrentMixer<Identity>);
static_assert(Mixer<Causal> && CausalMixer<Causal> && !RecurrentMixer<Causal>);
static_assert(Mixer<Recurrent> && CausalMixer<Recurrent> && RecurrentMixer<Recurrent>);
static_assert(!Mixer<int> && !Mixer<Nothing> && !Mixer<IntegerScalar> && !Mixer<ForwardNotConst>);
static_assert(!Mixer<ChannelsOfWrongType> && !Mixer<WithoutDirection>);
static_assert(CausalMixer<StateThatCantBeCopied> && !RecurrentMixer<StateThatCantBeCopied>);
static_assert(Mixer<BidirectionalWithStates> && !RecurrentMixer<BidirectionalWithStates>);
static_assert(!RecurrentMixer<WithoutStep>);

/// Counts what the base class hands on.
class Counting : public RecurrentMixerBase<Counting, float> {
 public:
  using Config = Nothing;
  using Weights = Nothing;
  static constexpr std::string_view name = "counting";
  static constexpr StateGrowth growth = StateGrowth::constant;
  struct State {
    Index rows = 0;
    Index calls = 0;
  };
  Index channels() const { return 2; }
  State initial_state() const { return {}; }
  void check_state(const State& state) const { expect(state.rows >= 0, name, "state", "negative"); }
  void advance(SequenceBatch<State> batch, ConstSequence<float> x, Sequence<float> y, Workspace&) const {
    for (Index b = 0; b < batch.size(); ++b) {
      State& state = batch.state(b);
      for (Index t = batch.begin(b); t < batch.begin(b) + batch.length(b); ++t) {
        y(t, 0) = x(t, 0);
        y(t, 1) = float(state.rows++);
      }
      ++state.calls;
    }
  }
};

static_assert(RecurrentMixer<Counting>);

TEST_CASE("the base class cuts batches into their sequences") {
  const Counting mixer;
  Workspace workspace;
  for (const Index scale : {1, 100, 1000}) {
    Counting::State a, b, c;
    a.rows = 5;
    Counting::State* const states[] = {&a, &b, &c};
    const Index offsets[] = {0, 2 * scale, 2 * scale, 7 * scale};
    const Matrix<float> x = Matrix<float>::Random(7 * scale, 2);
    Matrix<float> y = Matrix<float>::Constant(7 * scale, 2, -1);
    mixer.prefill(std::span<Counting::State* const>(states), std::span<const Index>(offsets), x, y, workspace);
    CHECK(a.rows == 5 + 2 * scale);
    CHECK(b.rows == 0);
    CHECK(c.rows == 5 * scale);
    CHECK(y.col(0) == x.col(0));
    bool ascending = true;
    for (Index t = 0; t < 7 * scale; ++t) ascending &= y(t, 1) == float(t < 2 * scale ? 5 + t : t - 2 * scale);
    CHECK(ascending);
  }
}

TEST_CASE("the base class runs nothing for no rows") {
  const Counting mixer;
  Workspace workspace;
  Counting::State state;
  const Matrix<float> x(0, 2);
  Matrix<float> y(0, 2);
  mixer.prefill(state, x, y, workspace);
  mixer.forward(x, y, workspace);
  const std::span<Counting::State* const> no_states;
  const Index zero[] = {0};
  mixer.prefill(no_states, std::span<const Index>(zero), x, y, workspace);
  mixer.step(no_states, x, y, workspace);
  CHECK(state.calls == 0);
}

TEST_CASE("the base class checks states before it runs") {
  const Counting mixer;
  Workspace workspace;
  Counting::State state;
  state.rows = -1;
  const Matrix<float> x(3, 2);
  Matrix<float> y(3, 2);
  CHECK_THROWS_AS(mixer.prefill(state, x, y, workspace), std::invalid_argument);
  CHECK(state.calls == 0);
}

struct ThreeTensors {
  Matrix<float> matrix = Matrix<float>(3, 4);
  Vector<float> vector = Vector<float>(5);
  Vector<float> absent;

  static void visit(auto& self, auto&& visitor) {
    visitor("matrix", self.matrix, Presence::required);
    visitor("vector", self.vector, Presence::required);
    visitor("absent", self.absent, Presence::optional);
  }
};

TEST_CASE("parameters are counted by visiting") { CHECK(parameter_count(ThreeTensors()) == 17); }

}  // namespace
}  // namespace seqmix
