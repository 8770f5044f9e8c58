#include "laws.hpp"

#include <algorithm>
#include <cstdlib>
#include <iterator>
#include <latch>
#include <limits>
#include <map>
#include <memory>
#include <thread>

#include "allocations.hpp"
#include "executors.hpp"
#include "sanitizers.hpp"
#include "system_calls.hpp"
#include "tolerance.hpp"

namespace seqmix::test {

namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();
constexpr double not_a_number = std::numeric_limits<double>::quiet_NaN();

struct Broken {
  std::string message;
};

template <class T>
bool same_bits(const T* a, const T* b, Index count) {
  return count == 0 || std::memcmp(a, b, std::size_t(count) * sizeof(T)) == 0;
}

template <class T>
class Checker {
 public:
  using State = std::unique_ptr<AnyState>;
  using Rows = Matrix<T>;

  Checker(const MixerCase<T>& mixer_case, Effort effort, const AnyMixer<T>* foreign)
      : case_(mixer_case),
        mixer_(*mixer_case.mixer),
        foreign_(foreign),
        full_(effort == Effort::full),
        channels_(mixer_.channels()) {}

  std::vector<LawFailure> run() {
    struct Law {
      const char* name;
      void (Checker::*check)();
      bool applies;
    };
    const bool recurrent = mixer_.recurrent(), causal = mixer_.direction() == Direction::causal;
    const Law laws[] = {
        {"accuracy", &Checker::accuracy, true},      {"stepping", &Checker::stepping, recurrent},
        {"pieces", &Checker::pieces, recurrent},     {"state", &Checker::state, recurrent},
        {"fork", &Checker::fork, recurrent},         {"causality", &Checker::causality, causal},
        {"threads", &Checker::threads, true},        {"quiet", &Checker::quiet, true},
        {"save", &Checker::save, recurrent},         {"views", &Checker::views, true},
        {"rollback", &Checker::rollback, recurrent}, {"batch", &Checker::batch, mixer_.batched()},
        {"errors", &Checker::errors, true},
    };
    std::vector<LawFailure> failures;
    for (const Law& law : laws) {
      if (!law.applies) continue;
#ifdef SEQMIX_TEST_THREAD_SANITIZER
      // In the others there is one thread, of which it can say nothing, and they take most of the time.
      if (law.check != &Checker::threads) continue;
#endif
      try {
        (this->*law.check)();
      } catch (const Broken& broken) {
        failures.push_back({law.name, broken.message});
      } catch (const std::exception& error) {
        failures.push_back({law.name, std::string("unexpected exception: ") + error.what()});
      }
    }
    return failures;
  }

 private:
  // --- what the laws share ---

  /// An input, forward's output for it, and how far others may lie from that.
  struct Sample {
    Rows x, y;
    RowBounds bounds;
  };

  [[noreturn]] static void fail(const std::string& message) { throw Broken{message}; }

  static void expect_true(bool condition, const std::string& message) {
    if (!condition) fail(message);
  }

  std::vector<Index> lengths() const {
    if (!full_) return {0, 1, 2, 7, 16, 33, 65};
    return {0, 1, 2, 3, 5, 7, 15, 16, 17, 31, 33, 63, 64, 65, 97, 127, 129, 257};
  }
  std::vector<Index> few_lengths() const {
    if (!full_) return {1, 17, 65};
    return {1, 5, 17, 64, 129, 257};
  }

  Rows random_rows(Index length, Rng& rng) const { return normal_matrix<T>(length, channels_, 1.0, rng); }
  Rows nan_rows(Index length) const { return Rows::Constant(length, channels_, T(not_a_number)); }

  Rows forward(const Rows& x) {
    Rows y = nan_rows(x.rows());
    workspace_.poison();
    mixer_.forward(x, y, workspace_);
    return y;
  }

  const Sample& sample(Index length) {
    auto& entry = samples_[length];
    if (!entry) {
      Rng rng(test_seed + std::uint64_t(length));
      entry = std::make_unique<Sample>();
      entry->x = random_rows(length, rng);
      entry->y = forward(entry->x);
      entry->bounds = row_bounds<T>(case_.exact, entry->x.template cast<double>());
      expect_true(entry->bounds.exact.allFinite(), "the test's input gives y that isn't finite");
    }
    return *entry;
  }

  /// Rows `begin` on of the sample against forward's.
  void expect_rows(const std::string& what, const Rows& rows, const Sample& expected, Index begin = 0) const {
    const std::string difference =
        compare_rows(rows, expected.y.middleRows(begin, rows.rows()), expected.bounds.allowed.data() + begin, begin);
    expect_true(difference.empty(), "length " + std::to_string(expected.x.rows()) + ", " + what + ": " + difference);
  }

  static void expect_same(const std::string& what, const Rows& a, const Rows& b) {
    for (Index t = 0; t < a.rows(); ++t) {
      for (Index c = 0; c < a.cols(); ++c) {
        if (!same_bits(&a(t, c), &b(t, c), 1)) {
          char text[120];
          std::snprintf(text, sizeof(text), ": bits differ at row %td, channel %td: %.9g and %.9g", t, c,
                        double(a(t, c)), double(b(t, c)));
          fail("length " + std::to_string(a.rows()) + ", " + what + text);
        }
      }
    }
  }

  void prefill_into(AnyState& state, const Rows& x, Index begin, Index count, Rows& y, Workspace& workspace) const {
    workspace.poison();
    mixer_.prefill(state, ConstSequence<T>(x).rows(begin, count), Sequence<T>(y).rows(begin, count), workspace);
  }
  void steps_into(AnyState& state, const Rows& x, Index begin, Index count, Rows& y, Workspace& workspace) const {
    for (Index t = begin; t < begin + count; ++t) {
      workspace.poison();
      mixer_.step(state, ConstSequence<T>(x).token(t), Sequence<T>(y).token(t), workspace);
    }
  }
  Rows prefill(AnyState& state, const Rows& x) {
    Rows y = nan_rows(x.rows());
    prefill_into(state, x, 0, x.rows(), y, workspace_);
    return y;
  }
  Rows steps(AnyState& state, const Rows& x) {
    Rows y = nan_rows(x.rows());
    steps_into(state, x, 0, x.rows(), y, step_workspace_);
    return y;
  }

  /// Random cuts, each piece by prefill or by steps. Returns a description.
  std::string random_pieces(AnyState& state, const Rows& x, Rows& y, Rng& rng) {
    const Index length = x.rows();
    std::vector<Index> cuts = {0, length};
    for (Index count = rng.integer(0, 5); count > 0; --count) cuts.push_back(rng.integer(0, length));
    if (rng.integer(0, 1) == 1) cuts.push_back(cuts.back());
    std::sort(cuts.begin(), cuts.end());
    std::string description = "cuts";
    for (std::size_t piece = 0; piece + 1 < cuts.size(); ++piece) {
      const Index begin = cuts[piece], count = cuts[piece + 1] - begin;
      const bool by_steps = count <= 20 && rng.integer(0, 2) == 0;
      description += " " + std::to_string(begin) + (by_steps ? " (steps)" : "");
      if (by_steps) {
        steps_into(state, x, begin, count, y, step_workspace_);
      } else {
        prefill_into(state, x, begin, count, y, workspace_);
      }
    }
    return description;
  }

  // --- the laws ---

  void accuracy() {
    for (const Index length : lengths()) {
      const Sample& expected = sample(length);
      const std::string difference = compare_rows(expected.y, expected.bounds.exact, expected.bounds.allowed.data());
      expect_true(difference.empty(), "length " + std::to_string(length) + ", against double: " + difference);
    }
  }

  void stepping() {
    for (const Index length : lengths()) {
      const Sample& expected = sample(length);
      auto state = mixer_.initial_state();
      expect_rows("steps", steps(*state, expected.x), expected);
    }
  }

  void pieces() {
    Rng rng(test_seed + 1);
    auto all = lengths();
    if (full_) all.push_back(1031);
    for (const Index length : all) {
      const Sample& expected = sample(length);
      for (int repeat = 0; repeat < (full_ ? 4 : 2); ++repeat) {
        auto state = mixer_.initial_state();
        Rows y = nan_rows(length);
        const std::string cuts = repeat == 0 ? "one piece" : random_pieces(*state, expected.x, y, rng);
        if (repeat == 0) prefill_into(*state, expected.x, 0, length, y, workspace_);
        expect_rows(cuts, y, expected);
        const auto bytes = state->bytes();
        prefill(*state, Rows(0, channels_));
        expect_true(state->bytes() == bytes, "an empty piece changes the state");
      }
    }
  }

  void state() {
    Rng rng(test_seed + 2);
    for (const Index length : few_lengths()) {
      const Sample& expected = sample(length);
      for (const Index prefix : {length / 2, length - 1}) {
        const Rows head = expected.x.topRows(prefix), tail = expected.x.bottomRows(length - prefix);
        for (int way = 0; way < 3; ++way) {
          auto before = mixer_.initial_state();
          Rows y = nan_rows(prefix);
          const std::string how = way == 0 ? "prefill" : way == 1 ? "steps" : random_pieces(*before, head, y, rng);
          if (way == 0) prefill(*before, head);
          if (way == 1) steps(*before, head);
          const auto again = before->copy();
          expect_rows(how + ", then prefill", prefill(*before, tail), expected, prefix);
          expect_rows(how + ", then steps", steps(*again, tail), expected, prefix);
        }
      }
    }
  }

  void fork() {
    Rng rng(test_seed + 3);
    for (const Index length : few_lengths()) {
      const Rows prompt = random_rows(length, rng), one = random_rows(19, rng), other = random_rows(23, rng);
      auto origin = mixer_.initial_state();
      prefill(*origin, prompt);
      const auto a = origin->copy(), b = origin->copy();
      const auto bytes = origin->bytes();
      expect_true(a->bytes() == bytes, "a copy differs from its origin");
      steps(*a, one);
      prefill(*b, one);
      expect_true(origin->bytes() == bytes, "advancing a copy changes its origin");
      const auto by_prefill = origin->copy(), by_steps = origin->copy();
      prefill(*origin, other);
      steps(*origin, other);
      expect_true(by_prefill->bytes() == bytes, "advancing a state changes its copies");
      const auto p = by_prefill->copy(), s = by_steps->copy();
      expect_same("copies continued by prefill", prefill(*by_prefill, one), prefill(*p, one));
      expect_same("copies continued by steps", steps(*by_steps, one), steps(*s, one));
      expect_true(by_prefill->bytes() == b->bytes() && by_steps->bytes() == a->bytes(),
                  "copies continued alike end in different states");
    }
  }

  void causality() {
    if (mixer_.causality() == Causality::rounded) return rounded_causality();
    Rng rng(test_seed + 4);
    const auto all = full_ ? std::vector<Index>{2, 17, 33, 65, 129, 257} : std::vector<Index>{2, 33, 65};
    for (const Index length : all) {
      const Sample& expected = sample(length);
      std::vector<Index> places = {1, length / 2, length - 1};
      for (const Index place : {15, 16, 17, 32, 63, 64, 65, 128, 192}) {
        if (place < length) places.push_back(place);
      }
      for (const Index place : places) {
        for (const double change : {0.0, not_a_number, infinity, -infinity, 1e30}) {
          Rows x = expected.x;
          for (Index t = place; t < length; ++t) {
            for (Index c = 0; c < channels_; ++c) {
              x(t, c) = change == 0.0 ? T(10 * rng.normal()) : rng.integer(0, 3) == 0 ? x(t, c) : T(change);
            }
          }
          char how[80];
          std::snprintf(how, sizeof(how), "of %td rows those from %td on changed to %s", length, place,
                        change == 0.0 ? "random numbers" : std::to_string(change).c_str());
          const Rows y = forward(x);
          expect_same(std::string(how) + ", forward", expected.y.topRows(place), y.topRows(place));
          if (!mixer_.recurrent() || length < 3) continue;
          auto a = mixer_.initial_state();
          const Rows head = x.topRows(1);
          prefill(*a, head);
          auto b = a->copy();
          const Rows before = prefill(*a, expected.x.bottomRows(length - 1)),
                     after = prefill(*b, x.bottomRows(length - 1));
          expect_same(std::string(how) + ", prefill", before.topRows(place - 1), after.topRows(place - 1));
        }
      }
    }
  }

  /// Each of two evaluations passes through transforms of N rows, which err by 4 eps log2(N) of the largest row that they hold
  /// (engine/fft.hpp), times 2 for what follows them. Of a row of y that is as much as the largest rows move when x moves
  /// relative to itself, which RowBounds knows in units of its own, and as this row moves when x moves by a part of its
  /// largest number: what is small may be divided by its size later on.
  void rounded_causality() {
    Rng rng(test_seed + 4);
    const auto all = full_ ? std::vector<Index>{2, 33, 65, 129, 257, 515} : std::vector<Index>{2, 33, 65, 200};
    for (const Index length : all) {
      const Sample& expected = sample(length);
      for (const Index place : {Index(1), length / 2, length - 1}) {
        for (const double size : {0.0, 1.0, 100.0}) {
          Rows x = expected.x;
          for (Index t = place; t < length; ++t) {
            for (Index c = 0; c < channels_; ++c) x(t, c) = T(size * rng.normal());
          }
          const RowBounds bounds = row_bounds<T>(case_.exact, x.template cast<double>());
          const double most =
              std::max(*std::max_element(bounds.allowed.begin(), bounds.allowed.end()),
                       *std::max_element(expected.bounds.allowed.begin(), expected.bounds.allowed.end()));
          const double unit = 4 * (4 + std::sqrt(double(length)));
          constexpr double delta = 1e-7;
          const double step = delta * double(x.cwiseAbs().maxCoeff());
          const Matrix<double> moved = case_.exact(expected.x.template cast<double>().unaryExpr(
              [&](double value) { return value + step * rng.uniform(-1, 1); }));
          std::vector<double> by_row;
          for (Index t = 0; t < length; ++t) {
            const double change = (moved.row(t) - expected.bounds.exact.row(t)).cwiseAbs().maxCoeff() / delta;
            by_row.push_back(2 * 2 * 4 * std::log2(double(std::max<Index>(2 * length, 64))) *
                             (most / unit + double(std::numeric_limits<T>::epsilon()) * change));
          }
          const auto expect_close = [&](const char* what, const Rows& given, const Rows& right) {
            const std::string difference = compare_rows(given, right, by_row.data());
            expect_true(difference.empty(), "length " + std::to_string(length) + ", rows from " +
                                                std::to_string(place) + " on changed to numbers of size " +
                                                std::to_string(size) + ", " + what + ": " + difference);
          };
          expect_close("forward", forward(x).topRows(place), expected.y.topRows(place));
          if (!mixer_.recurrent() || length < 3) continue;
          auto a = mixer_.initial_state();
          prefill(*a, Rows(x.topRows(1)));
          auto b = a->copy();
          const Rows before = prefill(*a, expected.x.bottomRows(length - 1)),
                     after = prefill(*b, x.bottomRows(length - 1));
          expect_close("prefill", after.topRows(place - 1), before.topRows(place - 1));
        }
      }
    }
  }

  /// Everything that must not depend on who runs it.
  struct Results {
    Rows forward, prefill, steps, batch;
    std::vector<std::byte> state;
  };

  Results compute(Index length, Workspace& workspace) const {
    Rng rng(test_seed + 5);
    const Rows x = random_rows(length, rng);
    Results result;
    result.forward = nan_rows(length);
    workspace.poison();
    mixer_.forward(x, result.forward, workspace);
    if (!mixer_.recurrent()) return result;
    auto state = mixer_.initial_state();
    result.prefill = nan_rows(length);
    prefill_into(*state, x, 0, length, result.prefill, workspace);
    result.steps = nan_rows(length);
    steps_into(*state, x, 0, std::min<Index>(length, 9), result.steps, workspace);
    result.state = state->bytes();
    if (mixer_.batched()) {
      result.batch = nan_rows(length);
      auto other = state->copy();
      AnyState* const states[] = {state.get(), other.get()};
      const Index offsets[] = {0, length / 3, length};
      workspace.poison();
      mixer_.prefill(states, offsets, x, result.batch, workspace);
      if (length >= 2) {
        workspace.poison();
        mixer_.step(states, ConstSequence<T>(x).rows(0, 2), Sequence<T>(result.steps).rows(length - 2, 2), workspace);
      }
      for (const AnyState* one : states) {
        const auto bytes = one->bytes();
        result.state.insert(result.state.end(), bytes.begin(), bytes.end());
      }
    }
    return result;
  }

  static void expect_equal(const std::string& who, const Results& expected, const Results& given) {
    expect_same(who + ", forward", expected.forward, given.forward);
    expect_same(who + ", prefill", expected.prefill, given.prefill);
    expect_same(who + ", steps", expected.steps, given.steps);
    expect_same(who + ", batch", expected.batch, given.batch);
    expect_true(expected.state == given.state,
                "length " + std::to_string(given.forward.rows()) + ", " + who + ": the states differ");
  }

  void threads() {
    const auto executors = all_executors();
    const auto all = full_ ? std::vector<Index>{0, 1, 17, 129, 515} : std::vector<Index>{1, 65};
    for (const Index length : all) {
      Workspace serial;
      const Results expected = compute(length, serial);
      expect_equal("a second call", expected, compute(length, serial));
      for (const auto& [name, executor] : executors) {
        Workspace workspace(*executor);
        expect_equal(name, expected, compute(length, workspace));
      }
      Results results[4];
      std::vector<std::thread> callers;
      std::latch together(std::ssize(results));  // else on a busy machine one may be done before the next begins
      for (Results& result : results) {
        callers.emplace_back([&, this] {
          Workspace workspace;
          together.arrive_and_wait();
          for (int repeat = 0; repeat < 3; ++repeat) result = compute(length, workspace);
        });
      }
      for (auto& caller : callers) caller.join();
      for (const Results& result : results) expect_equal("one of four callers", expected, result);
    }
  }

  void quiet() {
    Rng rng(test_seed + 6);
    const auto backward = backward_executor(3);
    for (Executor* executor : {static_cast<Executor*>(&serial_executor()), backward.get()}) {
      const std::string who = executor == backward.get() ? ", several pieces at a time" : "";
      for (const Index length : few_lengths()) {
        const std::string where = "length " + std::to_string(length) + who;
        const Rows x = random_rows(length, rng);
        Rows y = nan_rows(length);
        Workspace workspace(*executor);
        mixer_.forward(x, y, workspace);
        if (!mixer_.recurrent()) {
          expect_quiet(where + ", forward", [&] { mixer_.forward(x, y, workspace); });
          continue;
        }
        const auto fresh = [&] {
          auto state = mixer_.initial_state();
          const bool reserved = mixer_.reserve(*state, 3 * length + 8);
          expect_true(reserved || mixer_.growth() != StateGrowth::linear, "a growing state without reserve");
          return state;
        };
        auto warm = fresh(), state = fresh();
        prefill_into(*warm, x, 0, length, y, workspace);
        expect_quiet(where + ", prefill", [&] { mixer_.prefill(*state, x, y, workspace); });
        const auto step = [&](Index t) {
          mixer_.step(*state, ConstSequence<T>(x).token(t), Sequence<T>(y).token(t), workspace);
        };
        mixer_.step(*warm, ConstSequence<T>(x).token(0), Sequence<T>(y).token(0), workspace);
        expect_quiet(where + ", step", [&] {
          for (Index t = 0; t < length; ++t) step(t);
        });
        expect_true(makes_no_system_call([&] { step(0); }), where + ": step makes a system call");
        if (!mixer_.batched() || length < 2) continue;
        AnyState* const states[] = {warm.get(), state.get()};
        const auto step_both = [&] {
          mixer_.step(states, ConstSequence<T>(x).rows(0, 2), Sequence<T>(y).rows(0, 2), workspace);
        };
        step_both();
        expect_quiet(where + ", step of a batch", step_both);
      }
    }
  }

  template <class Call>
  static void expect_quiet(const std::string& what, Call call) {
    const std::size_t before = allocation_count();
    call();
    const std::size_t count = allocation_count() - before;
    if (count > 0) fail(what + ": " + std::to_string(count) + " allocations");
  }

  template <class Call>
  static std::string refusal(Call call) {
    try {
      call();
    } catch (const std::invalid_argument& error) {
      return error.what();
    }
    return {};
  }

  void save() {
    Rng rng(test_seed + 7);
    for (const Index length : {Index(0), Index(1), Index(17), Index(70)}) {
      const std::string where = "length " + std::to_string(length);
      const Rows prompt = random_rows(length, rng), next = random_rows(21, rng);
      auto original = mixer_.initial_state();
      prefill(*original, prompt);
      const auto blob = mixer_.save(*original);
      auto loaded = mixer_.load(blob);
      expect_true(loaded->bytes() == original->bytes(), where + ": the loaded state differs");
      auto original_again = original->copy(), loaded_again = loaded->copy();
      expect_same("loaded and continued by prefill", prefill(*original, next), prefill(*loaded, next));
      expect_same("loaded and continued by steps", steps(*original_again, next), steps(*loaded_again, next));
      expect_true(loaded->bytes() == original->bytes(), where + ": the continued states differ");

      for (const std::size_t size : {std::size_t(0), std::size_t(3), blob.size() / 2, blob.size() - 1}) {
        expect_true(!refusal([&] { mixer_.load(std::span(blob).first(size)); }).empty(),
                    where + ": a truncated state is taken");
      }
      for (int repeat = 0; repeat < 40; ++repeat) {
        auto altered = blob;
        altered[std::size_t(rng.integer(0, Index(blob.size()) - 1))] ^= std::byte(1 << rng.integer(0, 7));
        expect_true(!refusal([&] { mixer_.load(altered); }).empty(), where + ": an altered state is taken");
      }
    }
    if (foreign_ == nullptr) return;
    auto own = mixer_.initial_state(), other = foreign_->initial_state();
    prefill(*own, random_rows(5, rng));
    const Rows x = normal_matrix<T>(5, foreign_->channels(), 1.0, rng);
    Rows y(5, foreign_->channels());
    foreign_->prefill(*other, x, y, workspace_);
    if (other->bytes().size() == own->bytes().size()) return;  // perhaps as good as its own
    const auto blob = foreign_->save(*other);
    expect_true(!refusal([&] { mixer_.load(blob); }).empty(), "the saved state of another configuration is taken");
  }

  void views() {
    for (const Index length : few_lengths()) {
      const Sample& expected = sample(length);
      struct Layout {
        const char* name;
        Index x_offset, x_stride, y_offset, y_stride;  // in a common array where y_offset is beyond x's columns
        double before;
      };
      const Index fused = 2 * channels_ + 3;
      const Layout layouts[] = {{"y full of zeros", 0, channels_, 0, channels_, 0.0},
                                {"odd strides", 1, channels_ + 3, 3, channels_ + 5, not_a_number},
                                {"column blocks of one matrix", 1, fused, channels_ + 2, fused, infinity}};
      for (const Layout& layout : layouts) {
        const bool shared = layout.x_stride == fused && layout.y_stride == fused;
        Buffer<T> x_memory(std::size_t(length * layout.x_stride + layout.x_offset + 64), T(-7));
        Buffer<T> y_memory = shared ? Buffer<T>() : Buffer<T>(std::size_t(length * layout.y_stride + 64), T(-7));
        Buffer<T>& target = shared ? x_memory : y_memory;
        const Sequence<T> x(x_memory.data() + layout.x_offset, length, channels_, layout.x_stride);
        const Sequence<T> y(target.data() + layout.y_offset, length, channels_, layout.y_stride);
        for (Index t = 0; t < length; ++t) {
          std::copy_n(expected.x.data() + t * channels_, channels_, x.row(t));
        }
        const auto clear = [&] {
          for (Index t = 0; t < length; ++t) std::fill_n(y.row(t), channels_, T(layout.before));
        };
        const auto check = [&](const std::string& how, const Rows& right, const auto& call) {
          clear();
          auto untouched = target;
          workspace_.poison();
          call();
          Rows rows(length, channels_);
          for (Index t = 0; t < length; ++t) {
            std::copy_n(y.row(t), channels_, rows.data() + t * channels_);
            std::copy_n(y.row(t), channels_, untouched.data() + (y.row(t) - target.data()));
          }
          expect_same(std::string(layout.name) + ", " + how, right, rows);
          expect_true(same_bits(untouched.data(), target.data(), Index(target.size())),
                      std::string(layout.name) + ", " + how + ": memory beside y is written");
        };
        check("forward", expected.y, [&] { mixer_.forward(x, y, workspace_); });
        if (!mixer_.recurrent()) continue;
        auto plain = mixer_.initial_state(), strided = mixer_.initial_state();
        check("prefill", prefill(*plain, expected.x), [&] { mixer_.prefill(*strided, x, y, workspace_); });
        expect_true(plain->bytes() == strided->bytes(), std::string(layout.name) + ": the states differ");
        check("steps", steps(*plain, expected.x), [&] {
          for (Index t = 0; t < length; ++t) mixer_.step(*strided, x.token(t), y.token(t), workspace_);
        });
      }
    }
  }

  void rollback() {
    Rng rng(test_seed + 8);
    for (const Index length : few_lengths()) {
      const Sample& expected = sample(length);
      for (const Index back : {Index(1), length / 3, length}) {
        const Index kept = length - std::min(back, length);
        auto state = mixer_.initial_state();
        prefill(*state, expected.x.topRows(kept));
        const auto saved = state->copy();
        prefill(*state, random_rows(length - kept, rng));  // tokens that are taken back
        steps(*state, random_rows(3, rng));
        const auto again = saved->copy();
        const Rows tail = expected.x.bottomRows(length - kept);
        expect_rows("rolled back to " + std::to_string(kept) + ", prefill", prefill(*saved, tail), expected, kept);
        expect_rows("rolled back to " + std::to_string(kept) + ", steps", steps(*again, tail), expected, kept);
      }
    }
  }

  void batch() {
    Rng rng(test_seed + 9);
    const Index past[] = {0, 3, 0, 20, 1}, now[] = {17, 0, 33, full_ ? 531 : 5, 1}, later = 4;
    for (const std::size_t size : {std::size_t(0), std::size_t(1), std::size_t(2), std::size_t(5)}) {
      std::vector<State> owned;
      std::vector<AnyState*> states;
      std::vector<Index> offsets = {0};
      std::vector<const Sample*> expected;
      for (std::size_t b = 0; b < size; ++b) {
        expected.push_back(&sample(past[b] + now[b] + later));
        owned.push_back(mixer_.initial_state());
        prefill(*owned.back(), expected.back()->x.topRows(past[b]));
        states.push_back(owned.back().get());
        offsets.push_back(offsets.back() + now[b]);
      }
      Rows x(offsets.back(), channels_), y = nan_rows(offsets.back());
      for (std::size_t b = 0; b < size; ++b) {
        x.middleRows(offsets[b], now[b]) = expected[b]->x.middleRows(past[b], now[b]);
      }
      workspace_.poison();
      mixer_.prefill(states, offsets, x, y, workspace_);
      const std::string where = "batch of " + std::to_string(size) + ", sequence ";
      for (std::size_t b = 0; b < size; ++b) {
        expect_rows(where + std::to_string(b), y.middleRows(offsets[b], now[b]), *expected[b], past[b]);
      }
      for (Index step = 0; step < later; ++step) {
        Rows tokens(Index(size), channels_), out = nan_rows(Index(size));
        for (std::size_t b = 0; b < size; ++b) tokens.row(Index(b)) = expected[b]->x.row(past[b] + now[b] + step);
        workspace_.poison();
        mixer_.step(states, tokens, out, workspace_);
        for (std::size_t b = 0; b < size; ++b) {
          expect_rows(where + std::to_string(b) + ", step", out.row(Index(b)), *expected[b], past[b] + now[b] + step);
        }
      }
    }
  }

  void errors() {
    Rng rng(test_seed + 10);
    const Index length = 5;
    const Rows x = random_rows(length, rng);
    // Rows wide and long enough for every wrong view below.
    Rows memory = Rows::Constant(2 * length + 2, 2 * channels_ + 2, T(3));
    const Rows memory_before = memory;
    const Index stride = memory.cols();
    const Sequence<T> y(memory.data(), length, channels_, stride);
    const Sequence<T> wide(memory.data(), length, channels_ + 1, stride),
        narrow(memory.data(), length, channels_ - 1, stride);
    const Sequence<T> longer(memory.data(), length + 1, channels_, stride),
        shorter(memory.data(), length - 1, channels_, stride);
    const ConstSequence<T> in = x;
    Rows wide_x = Rows::Zero(length, channels_ + 1);

    const auto check_call = [&](const std::string& what, const auto& call) {
      const std::string message = refusal(call);
      expect_true(!message.empty(), what + " is taken");
      expect_true(message.find(mixer_.name()) != std::string::npos,
                  what + ": the message doesn't name the operator: " + message);
      expect_true(memory == memory_before, what + ": y is written");
    };
    const auto check_all = [&](const std::string& kind, const auto& call) {
      check_call(kind + ", x too wide", [&] { call(ConstSequence<T>(wide_x), y); });
      check_call(kind + ", x too narrow",
                 [&] { call(ConstSequence<T>(x.data(), length, channels_ - 1, channels_), y); });
      check_call(kind + ", y too wide", [&] { call(in, wide); });
      check_call(kind + ", y too narrow", [&] { call(in, narrow); });
      check_call(kind + ", y too long", [&] { call(in, longer); });
      check_call(kind + ", y too short", [&] { call(in, shorter); });
      check_call(kind + ", y is x", [&] { call(ConstSequence<T>(y), y); });
      check_call(kind + ", y overlaps x by a row",
                 [&] { call(ConstSequence<T>(memory.data() + stride, length, channels_, stride), y); });
      if (channels_ > 1) {
        check_call(kind + ", y overlaps x by a column",
                   [&] { call(ConstSequence<T>(memory.data() + channels_ - 1, length, channels_, stride), y); });
        check_call(kind + ", rows of y overlap",
                   [&] { call(in, Sequence<T>(memory.data(), length, channels_, channels_ - 1)); });
      }
    };
    check_all("forward", [&](ConstSequence<T> from, Sequence<T> to) { mixer_.forward(from, to, workspace_); });
    if (!mixer_.recurrent()) return;

    auto state = mixer_.initial_state();
    prefill(*state, random_rows(7, rng));
    const auto bytes = state->bytes();
    check_all("prefill", [&](ConstSequence<T> from, Sequence<T> to) { mixer_.prefill(*state, from, to, workspace_); });
    check_call("step, x too wide",
               [&] { mixer_.step(*state, ConstSequence<T>(wide_x).token(0), y.token(0), workspace_); });
    check_call("step, y too wide", [&] { mixer_.step(*state, in.token(0), wide.token(0), workspace_); });
    check_call("step, y too narrow", [&] { mixer_.step(*state, in.token(0), narrow.token(0), workspace_); });
    check_call("step, y is x", [&] { mixer_.step(*state, ConstSequence<T>(y).token(0), y.token(0), workspace_); });
    expect_true(state->bytes() == bytes, "a refused call changes the state");

    for (Index which = 0; which < 2 * state->arrays(); ++which) {
      const auto foreign = state->copy();
      if (which < state->arrays()) {
        foreign->lengthen(which);
      } else if (!foreign->reshape(which - state->arrays())) {
        continue;
      }
      const auto before = foreign->bytes();
      const std::string what = "a state whose array " + std::to_string(which % state->arrays()) + " has another shape";
      check_call("prefill, " + what, [&] { mixer_.prefill(*foreign, in, y, workspace_); });
      check_call("step, " + what, [&] { mixer_.step(*foreign, in.token(0), y.token(0), workspace_); });
      expect_true(foreign->bytes() == before, what + " is changed");
    }
    if (!mixer_.batched()) return;

    const auto second = state->copy();
    AnyState* const two[] = {state.get(), second.get()};
    AnyState* const twice[] = {state.get(), state.get()};
    const auto batch_with = [&](std::span<AnyState* const> states, std::vector<Index> offsets) {
      return [&, states, offsets] { mixer_.prefill(states, offsets, in, y, workspace_); };
    };
    check_call("a batch with too few offsets", batch_with(two, {0, length}));
    check_call("a batch with too many offsets", batch_with(two, {0, 1, 2, length}));
    check_call("a batch whose offsets descend", batch_with(two, {0, length + 1, length}));
    check_call("a batch whose offsets end early", batch_with(two, {0, 1, length - 1}));
    check_call("a batch whose offsets begin late", batch_with(two, {1, 2, length}));
    check_call("a batch with a state given twice", batch_with(twice, {0, 1, length}));
    check_call("a batch of steps with too many rows", [&] { mixer_.step(two, in, y, workspace_); });
    const auto wrong = state->copy();
    if (wrong->arrays() > 0) {
      wrong->lengthen(0);
      AnyState* const mixed[] = {state.get(), wrong.get()};
      check_call("a batch with a wrong state", batch_with(mixed, {0, 2, length}));
    }
    expect_true(state->bytes() == bytes && second->bytes() == bytes, "a refused batch changes a state");
  }

  const MixerCase<T>& case_;
  const AnyMixer<T>& mixer_;
  const AnyMixer<T>* foreign_;
  bool full_;
  Index channels_;
  Workspace workspace_;
  Workspace step_workspace_;  // for steps alone, as poison() fills all that a workspace ever held
  std::map<Index, std::unique_ptr<Sample>> samples_;
};

}  // namespace

Effort test_effort() {
  const char* effort = std::getenv("SEQMIX_TEST_EFFORT");
  return effort != nullptr && std::string_view(effort) == "small" ? Effort::small : Effort::full;
}

template <class T>
std::vector<LawFailure> check_laws(const MixerCase<T>& mixer, Effort effort, const AnyMixer<T>* foreign) {
  return Checker<T>(mixer, effort, foreign).run();
}

template std::vector<LawFailure> check_laws<float>(const MixerCase<float>&, Effort, const AnyMixer<float>*);
template std::vector<LawFailure> check_laws<double>(const MixerCase<double>&, Effort, const AnyMixer<double>*);

}  // namespace seqmix::test
