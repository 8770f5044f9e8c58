// The laws can fail: a small correct mixer keeps them all, and each way to break it is reported under its law.
#include <unistd.h>
#include <atomic>
#include <catch2/catch_test_macros.hpp>
#include <chrono>
#include <memory>
#include <seqmix/core/mixer.hpp>
#include <string>
#include <thread>

#include "support/laws.hpp"
#include "support/system_calls.hpp"

namespace seqmix::test {
namespace {

enum class Defect {
  none,
  stale_carry,       // prefill forgets the state of the row before its last
  wrong_rate,        // step decays a little faster
  hidden_history,    // the state is in the mixer
  shared_copy,       // copies of a state share memory
  reads_ahead,       // a row depends on the next one
  rounds_ahead,      // a row depends on the next one, by a rounding error
  masks_by_product,  // a row depends on the next one times zero
  allocates,         // step allocates
  system_call,       // step makes a system call
  counts_threads,    // the result depends on the executor
  shared_scratch,    // callers share a scratch array in the mixer
  unsaved_field,     // visit leaves out a field
  dense_rows,        // takes y for contiguous
  writes_beside,     // writes one number beyond a row
  adds_to_output,    // y += instead of y =
  reads_scratch,     // uses scratch memory before it is written
  swaps_batch,       // hands the states of a batch out in the wrong order
  silent,            // checks no shapes
  takes_any_state,   // checks no states
  writes_early,      // writes y before it checks
  imprecise,         // prefill loses half the digits
  coarse_float,      // float has fewer digits than it could
};

template <class T>
struct AverageState {
  Tensor<T> average;  // [channels]
  Index position = 0;
  std::shared_ptr<Buffer<T>> shared;  // used by one defect only
  Defect defect = Defect::none;

  static void visit(auto& self, auto&& visitor) {
    if (self.defect != Defect::unsaved_field) visitor("average", self.average);
    visitor("position", self.position);
  }
};

/// y[t] = a[t] / (1 - rate^t) with a[t] = rate a[t - 1] + (1 - rate) x[t]: an exponential moving average.
template <class T, Causality keeps = Causality::exact>
class Average : public RecurrentMixerBase<Average<T, keeps>, T> {
 public:
  using Base = RecurrentMixerBase<Average<T, keeps>, T>;
  static constexpr std::string_view name = "average";
  static constexpr Causality causality = keeps;
  static constexpr StateGrowth growth = StateGrowth::constant;

  struct Config {
    Index channels = 1;
    Defect defect = Defect::none;
  };
  struct Weights {
    Vector<T> rate;
    template <class Self, class Visitor>
    static void visit(Self& self, Visitor&& visitor) {
      visitor("rate", self.rate, Presence::required);
    }
  };
  using State = AverageState<T>;

  Average(Config config, Weights weights) : config_(config), weights_(std::move(weights)) {
    expect_tensor(name, "rate", {config_.channels}, weights_.rate);
    scratch_ = std::make_shared<Buffer<T>>(std::size_t(config_.channels));
    history_ = std::make_shared<std::atomic<Index>>(0);
  }
  static Weights random_weights(const Config& config, Rng& rng) {
    return {uniform_vector<T>(config.channels, 0.5, 0.99, rng)};
  }

  Index channels() const { return config_.channels; }
  State initial_state() const {
    return {Tensor<T>({channels()}), 0, std::make_shared<Buffer<T>>(std::size_t(channels())), config_.defect};
  }
  void check_state(const State& state) const {
    if (has(Defect::takes_any_state)) return;
    expect_shape(name, "state", {channels()}, state.average.shape());
  }

  void forward(ConstSequence<T> x, Sequence<T> y, Workspace& workspace) const {
    if (has(Defect::writes_early) && y.length() > 0) y(0, 0) = T(1);
    if (has(Defect::silent) && (x.channels() != channels() || y.channels() != channels())) return;
    Base::forward(x, y, workspace);
  }

  void advance(SequenceBatch<State> batch, ConstSequence<T> x, Sequence<T> y, Workspace& workspace) const {
    for (Index b = 0; b < batch.size(); ++b) {
      State& state = batch.state(has(Defect::swaps_batch) ? batch.size() - 1 - b : b);
      const auto rows_in = x.rows(batch.begin(b), batch.length(b));
      auto rows_out = y.rows(batch.begin(b), batch.length(b));
      if (has(Defect::dense_rows)) rows_out = Sequence<T>(rows_out.data(), rows_out.length(), channels());
      workspace.parallel_for(channels(), [&](Index c, Workspace& local) {
        run_channel(state, c, rows_in, rows_out, local, batch.size() == 1 && workspace.concurrency() == 3);
      });
      state.position += batch.length(b);
      if (has(Defect::hidden_history)) *history_ += batch.length(b);
    }
    if (has(Defect::allocates) && x.length() == 1) {
      thread_local Buffer<T> waste;
      Buffer<T>(100).swap(waste);
    }
    if (has(Defect::system_call)) (void)!::getppid();
  }

 private:
  void run_channel(State& state, Index c, ConstSequence<T> x, Sequence<T> y, Workspace& local, bool odd) const {
    T& average = has(Defect::shared_copy) ? (*state.shared)[std::size_t(c)] : state.average[std::size_t(c)];
    T& carry = has(Defect::shared_scratch) ? (*scratch_)[std::size_t(c)] : average;
    if (has(Defect::shared_scratch)) carry = average;
    T rate = weights_.rate[c];
    if (has(Defect::wrong_rate) && x.length() == 1) rate *= T(0.999);
    if (has(Defect::hidden_history) && *history_ % 7 == 6) rate *= T(0.9);
    T scratch = T(0);
    if (has(Defect::reads_scratch)) scratch = local.template take<T>(1)[0];
    const T before = carry;
    for (Index t = 0; t < x.length(); ++t) {
      T next = x(t, c);
      if (has(Defect::reads_ahead) && t + 1 < x.length()) next += T(1e-3) * x(t + 1, c);
      if (has(Defect::rounds_ahead) && t + 1 < x.length()) next += std::numeric_limits<T>::epsilon() * x(t + 1, c);
      if (has(Defect::masks_by_product) && t + 1 < x.length()) next += T(0) * x(t + 1, c);
      if (has(Defect::counts_threads) && odd) next *= T(1) + std::numeric_limits<T>::epsilon();
      carry = rate * carry + (T(1) - rate) * next;
      if (has(Defect::imprecise) && x.length() > 1) carry = T(std::round(double(carry) * 4096) / 4096);
      if (has(Defect::coarse_float) && std::same_as<T, float>) carry = T(std::round(double(carry) * 4096) / 4096);
      // Asleep, so that another caller comes in between however busy the machine is.
      if (has(Defect::shared_scratch) && t == 0) std::this_thread::sleep_for(std::chrono::microseconds(50));
      y(t, c) = (has(Defect::adds_to_output) ? y(t, c) : T(0)) + carry + scratch;
      if (has(Defect::writes_beside) && c + 1 == channels() && t + 1 < x.length()) y.row(t)[channels()] = T(5);
    }
    if (has(Defect::stale_carry) && x.length() > 1) carry = before;
    if (has(Defect::shared_scratch)) average = carry;
  }

  bool has(Defect defect) const { return config_.defect == defect; }

  Config config_;
  Weights weights_;
  std::shared_ptr<Buffer<T>> scratch_;
  std::shared_ptr<std::atomic<Index>> history_;
};

static_assert(RecurrentMixer<Average<float>>);

template <Causality keeps>
struct AverageTests {
  static constexpr const char* name = "average";
  template <class T>
  using Mixer = Average<T, keeps>;
  /// Two for each defect.
  template <class T>
  static std::vector<Configuration<Mixer<T>>> configurations(Rng&) {
    std::vector<Configuration<Mixer<T>>> result;
    for (int defect = 0; defect <= int(Defect::coarse_float); ++defect) {
      result.push_back({"five channels", {.channels = 5, .defect = Defect(defect)}});
      result.push_back({"one channel", {.channels = 1, .defect = Defect(defect)}});
    }
    return result;
  }
  static auto weights(const typename Mixer<double>::Config& config, Rng& rng) {
    return Mixer<double>::random_weights(config, rng);
  }
};

/// The laws that a defect breaks, as "law law law ".
template <class T, Causality keeps = Causality::exact>
std::string broken_laws(Defect defect, Index configuration = 0) {
  const MixerEntry entry = mixer_entry<AverageTests<keeps>>();
  const auto mixer = entry.make<T>(2 * Index(defect) + configuration);
  const auto foreign = entry.make<T>(2 * Index(defect) + 1 - configuration);
  std::string laws;
  for (const auto& failure : check_laws<T>(mixer, Effort::small, foreign.mixer.get())) {
    laws += failure.law + " ";
    UNSCOPED_INFO(failure.law << ": " << failure.message);
  }
  return laws;
}

void expect_broken(Defect defect, const std::string& law) {
  const auto in_float = broken_laws<float>(defect);
  INFO("float breaks: " << in_float);
  CHECK(in_float.find(law) != std::string::npos);
  const auto in_double = broken_laws<double>(defect);
  INFO("double breaks: " << in_double);
  CHECK(in_double.find(law) != std::string::npos);
}

TEST_CASE("a correct mixer keeps the laws") {
  for (const Index configuration : {0, 1}) {
    CHECK(broken_laws<float>(Defect::none, configuration).empty());
    CHECK(broken_laws<double>(Defect::none, configuration).empty());
  }
}

TEST_CASE("where rounding errors are allowed they break no law") {
  CHECK(broken_laws<float, Causality::rounded>(Defect::rounds_ahead).empty());
  CHECK(broken_laws<double, Causality::rounded>(Defect::rounds_ahead).empty());
}

TEST_CASE("each law can fail") {
  SECTION("stale carry") { expect_broken(Defect::stale_carry, "state"); }
  SECTION("wrong rate") { expect_broken(Defect::wrong_rate, "stepping"); }
  SECTION("hidden history") { expect_broken(Defect::hidden_history, "rollback"); }
  SECTION("shared copy") { expect_broken(Defect::shared_copy, "fork"); }
  SECTION("reads ahead") { expect_broken(Defect::reads_ahead, "causality"); }
  SECTION("rounds ahead") { expect_broken(Defect::rounds_ahead, "causality"); }
  SECTION("reads ahead, where rounding errors are allowed") {
    CHECK(broken_laws<float, Causality::rounded>(Defect::reads_ahead).find("causality") != std::string::npos);
    CHECK(broken_laws<double, Causality::rounded>(Defect::reads_ahead).find("causality") != std::string::npos);
  }
  SECTION("masks by product") { expect_broken(Defect::masks_by_product, "causality"); }
  SECTION("allocates") { expect_broken(Defect::allocates, "quiet"); }
  SECTION("counts threads") { expect_broken(Defect::counts_threads, "threads"); }
  SECTION("unsaved field") { expect_broken(Defect::unsaved_field, "save"); }
  SECTION("dense rows") { expect_broken(Defect::dense_rows, "views"); }
  SECTION("writes beside") { expect_broken(Defect::writes_beside, "views"); }
  SECTION("adds to output") { expect_broken(Defect::adds_to_output, "views"); }
  SECTION("reads scratch") { expect_broken(Defect::reads_scratch, "pieces"); }
  SECTION("swaps batch") { expect_broken(Defect::swaps_batch, "batch"); }
  SECTION("silent") { expect_broken(Defect::silent, "errors"); }
  SECTION("takes any state") { expect_broken(Defect::takes_any_state, "errors"); }
  SECTION("writes early") { expect_broken(Defect::writes_early, "errors"); }
  SECTION("coarse float") {
    CHECK(broken_laws<float>(Defect::coarse_float).find("accuracy") != std::string::npos);
    CHECK(broken_laws<double>(Defect::coarse_float).empty());
  }
  SECTION("imprecise") { expect_broken(Defect::imprecise, "pieces"); }
#ifdef SEQMIX_TEST_SECCOMP
  SECTION("system call") { expect_broken(Defect::system_call, "quiet"); }
#endif
#ifndef SEQMIX_TEST_THREAD_SANITIZER
  SECTION("shared scratch") { expect_broken(Defect::shared_scratch, "threads"); }
#endif
}

}  // namespace
}  // namespace seqmix::test
