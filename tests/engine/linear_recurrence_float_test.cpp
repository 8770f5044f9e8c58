// The linear recurrence engine in float, without decay and with decays that are the same for all tokens.
#include <catch2/catch_test_macros.hpp>

#include "linear_recurrence_cases.hpp"

namespace seqmix::test::recurrence {
namespace {

TEST_CASE("linear recurrence, no decay, float", "[linear_recurrence]") {
  SECTION("read after the update") { check_policy<Inputs<float, NoDecay, false, false>>(); }
  SECTION("read before the update, normalised") { check_policy<Inputs<float, NoDecay, true, true>>(); }
}
TEST_CASE("linear recurrence, decay per head, float", "[linear_recurrence]") {
  SECTION("read after the update, normalised") { check_policy<Inputs<float, HeadDecay, false, true>>(); }
  SECTION("read before the update") { check_policy<Inputs<float, HeadDecay, true, false>>(); }
}
TEST_CASE("linear recurrence, decay per channel, float", "[linear_recurrence]") {
  SECTION("read after the update") { check_policy<Inputs<float, ChannelDecay, false, false>>(); }
  SECTION("read before the update, normalised") { check_policy<Inputs<float, ChannelDecay, true, true>>(); }
}

TEST_CASE("linear recurrence, any number of threads gives the same bits, constant decays, float",
          "[linear_recurrence]") {
  check_threads<Inputs<float, NoDecay, false, false>>();
  check_threads<Inputs<float, NoDecay, true, true>>();
  check_threads<Inputs<float, HeadDecay, false, true>>();
  check_threads<Inputs<float, HeadDecay, true, false>>();
  check_threads<Inputs<float, ChannelDecay, false, false>>();
  check_threads<Inputs<float, ChannelDecay, true, true>>();
}

TEST_CASE("linear recurrence, NaN and infinity go where the equations take them, constant decays, float",
          "[linear_recurrence]") {
  check_not_a_number<Inputs<float, NoDecay, false, false>>();
  check_not_a_number<Inputs<float, HeadDecay, true, false>>();
  check_not_a_number<Inputs<float, ChannelDecay, false, false>>();
}

TEST_CASE("linear recurrence, maps of queries and keys", "[linear_recurrence]") {
  using I = Inputs<float, NoDecay, false, true, feature_map::Elu1>;
  Workspace workspace;
  Rng rng(test_seed);
  for (const Index key_dim : {1, 5, 8, 17}) {
    check_shape<I>({.length = 33, .heads = 2, .key_dim = key_dim, .value_dim = 9}, Decays::mild, true, rng, workspace);
  }
}

// The key of one token and the query of a later one are so large that their product is infinite; the decay between them
// is as strong. Values are small enough that the memory holds them.
template <class Decay, class Readout = readout::AfterUpdate<float>>
void check_large_product(const Decay& decay, double log_decay, const Readout& readout = {}, double weight = 1) {
  constexpr Index length = 24, dim = 5, from = 8;
  for (const Index to : {9, 11}) {
    Matrix<float> query = Matrix<float>::Ones(length, dim), key = query,
                  value = Matrix<float>::Constant(length, dim, 1e-15f);
    key.row(from).setConstant(1e20f);
    query.row(to).setConstant(1e20f);
    Matrix<float> y[3], memory[3];
    for (std::size_t order = 0; order < 3; ++order) {
      y[order].setZero(length, dim);
      memory[order].setZero(dim, dim);
      const LinearRecurrenceProblem<float, Decay, Readout> problem{Sequence<const float>(query).heads(1),
                                                                   Sequence<const float>(key).heads(1),
                                                                   Sequence<const float>(value).heads(1),
                                                                   decay,
                                                                   readout,
                                                                   {},
                                                                   1.0f,
                                                                   {memory[order].data(), 1, dim, dim},
                                                                   Sequence<float>(y[order]).heads(1)};
      Workspace workspace;
      if (order == 0) linear_recurrence_in_place(problem, workspace);
      if (order == 1) linear_recurrence_panels<RecurrenceOrder::fused>(problem, workspace);
      if constexpr (!Decay::per_value_channel && !Readout::weighted) {
        if (order == 2) linear_recurrence_panels<RecurrenceOrder::chunked>(problem, workspace);
      } else if (order == 2) {
        continue;
      }
      // What reaches the token is its own key and, decayed, those before it.
      double expected = 0;
      for (Index s = 0; s <= to; ++s) {
        expected += double(key(s, 0)) * (s == to ? 1.0 : std::exp(double(to - s) * log_decay));
      }
      expected *= dim * 1e20 * weight * double(value(0, 0));
      CHECK(y[order].allFinite());
      CHECK(memory[order].allFinite());
      CHECK(std::abs(double(y[order](to, 0)) - expected) <= 1e-4 * expected);
    }
  }
}

TEST_CASE("linear recurrence, a large query and a large key with a strong decay between them", "[linear_recurrence]") {
  for (const double log_decay : {-40.0, -80.0, -500.0, -infinity}) {
    const Vector<float> one = Vector<float>::Constant(1, float(log_decay));
    const Matrix<float> each = Matrix<float>::Constant(24, 1, float(log_decay));
    check_large_product(decay::PerHead<float>{one}, log_decay);
    check_large_product(decay::PerToken<float>{each}, log_decay);
    const Matrix<float> weights = Matrix<float>::Constant(24, 1, 1e-3f);
    check_large_product(decay::PerToken<float>{each}, log_decay, readout::Weighted<float>{weights, weights}, 1e-3);
    const Matrix<float> channels = Matrix<float>::Constant(24, 5, float(log_decay));
    check_large_product(decay::PerTokenValueChannel<float>{Sequence<const float>(channels).heads(1)}, log_decay);
  }
}

TEST_CASE("linear recurrence, errors of a decayed memory do not grow with the length, constant decays",
          "[linear_recurrence]") {
  SECTION("decay per head") { check_long_run<HeadDecay, true>(); }
  SECTION("decay per channel") { check_long_run<ChannelDecay, false>(); }
}

}  // namespace
}  // namespace seqmix::test::recurrence
