// The linear recurrence engine in float, with decays per token.
#include <catch2/catch_test_macros.hpp>

#include "linear_recurrence_cases.hpp"

namespace seqmix::test::recurrence {
namespace {

TEST_CASE("linear recurrence, decay per token, float", "[linear_recurrence]") {
  SECTION("read after the update, normalised") { check_policy<Inputs<float, TokenDecay, false, true>>(); }
  SECTION("read before the update") { check_policy<Inputs<float, TokenDecay, true, false>>(); }
}
TEST_CASE("linear recurrence, decay per token and channel, float", "[linear_recurrence]") {
  SECTION("read after the update") { check_policy<Inputs<float, TokenChannelDecay, false, false>>(); }
  SECTION("read before the update, normalised") { check_policy<Inputs<float, TokenChannelDecay, true, true>>(); }
}
TEST_CASE("linear recurrence, decay per token and value channel, float", "[linear_recurrence]") {
  check_policy<Inputs<float, TokenValueChannelDecay, false, false>>();
}
TEST_CASE("linear recurrence, sum that is rescaled, float", "[linear_recurrence]") {
  check_policy<Inputs<float, RescaledSum, false, false>>();
}

TEST_CASE("linear recurrence, weighted tokens, float", "[linear_recurrence]") {
  check_policy<Inputs<float, WeightedTokenDecay, false, false>>();
}
TEST_CASE("linear recurrence, outputs are mapped once each", "[linear_recurrence]") {
  check_output_map<Inputs<float, TokenDecay, true, false>>();
  check_output_map<Inputs<float, WeightedTokenDecay, false, false>>();
  check_output_map<Inputs<float, TokenValueChannelDecay, false, false>>();
}

TEST_CASE("linear recurrence, any number of threads gives the same bits, decays per token, float",
          "[linear_recurrence]") {
  check_threads<Inputs<float, WeightedTokenDecay, false, false>>();
  check_threads<Inputs<float, TokenDecay, false, true>>();
  check_threads<Inputs<float, TokenDecay, true, false>>();
  check_threads<Inputs<float, TokenChannelDecay, false, false>>();
  check_threads<Inputs<float, TokenChannelDecay, true, true>>();
  check_threads<Inputs<float, RescaledSum, false, false>>();
  check_threads<Inputs<float, TokenValueChannelDecay, false, false>>();
}

TEST_CASE("linear recurrence, NaN and infinity go where the equations take them, decays per token, float",
          "[linear_recurrence]") {
  check_not_a_number<Inputs<float, TokenDecay, true, false>>();
  check_not_a_number<Inputs<float, WeightedTokenDecay, false, false>>();
  check_not_a_number<Inputs<float, RescaledSum, false, false>>();
  check_not_a_number<Inputs<float, TokenChannelDecay, false, false>>();
  check_not_a_number<Inputs<float, TokenValueChannelDecay, false, false>>();
}

TEST_CASE("linear recurrence, errors of a decayed memory do not grow with the length, decays per token",
          "[linear_recurrence]") {
  SECTION("decay per token") { check_long_run<TokenDecay, true>(); }
  SECTION("decay per token and channel") { check_long_run<TokenChannelDecay, false>(); }
}

}  // namespace
}  // namespace seqmix::test::recurrence
