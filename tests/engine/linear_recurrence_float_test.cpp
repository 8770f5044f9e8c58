// The linear recurrence engine in float.
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
TEST_CASE("linear recurrence, decay per token, float", "[linear_recurrence]") {
  SECTION("read after the update, normalised") { check_policy<Inputs<float, TokenDecay, false, true>>(); }
  SECTION("read before the update") { check_policy<Inputs<float, TokenDecay, true, false>>(); }
}
TEST_CASE("linear recurrence, decay per token and channel, float", "[linear_recurrence]") {
  SECTION("read after the update") { check_policy<Inputs<float, TokenChannelDecay, false, false>>(); }
  SECTION("read before the update, normalised") { check_policy<Inputs<float, TokenChannelDecay, true, true>>(); }
}

TEST_CASE("linear recurrence, any number of threads gives the same bits, float", "[linear_recurrence]") {
  check_threads<Inputs<float, NoDecay, false, false>>();
  check_threads<Inputs<float, NoDecay, true, true>>();
  check_threads<Inputs<float, HeadDecay, false, true>>();
  check_threads<Inputs<float, HeadDecay, true, false>>();
  check_threads<Inputs<float, ChannelDecay, false, false>>();
  check_threads<Inputs<float, ChannelDecay, true, true>>();
  check_threads<Inputs<float, TokenDecay, false, true>>();
  check_threads<Inputs<float, TokenDecay, true, false>>();
  check_threads<Inputs<float, TokenChannelDecay, false, false>>();
  check_threads<Inputs<float, TokenChannelDecay, true, true>>();
}

TEST_CASE("linear recurrence, NaN and infinity go where the equations take them, float", "[linear_recurrence]") {
  check_not_a_number<Inputs<float, NoDecay, false, false>>();
  check_not_a_number<Inputs<float, HeadDecay, true, false>>();
  check_not_a_number<Inputs<float, ChannelDecay, false, false>>();
  check_not_a_number<Inputs<float, TokenDecay, true, false>>();
  check_not_a_number<Inputs<float, TokenChannelDecay, false, false>>();
}

TEST_CASE("linear recurrence, maps of queries and keys", "[linear_recurrence]") {
  using I = Inputs<float, NoDecay, false, true, feature_map::Elu1>;
  Workspace workspace;
  Rng rng(test_seed);
  for (const Index key_dim : {1, 5, 8, 17}) {
    check_shape<I>({.length = 33, .heads = 2, .key_dim = key_dim, .value_dim = 9}, Decays::mild, true, rng, workspace);
  }
}

TEST_CASE("linear recurrence, errors of a decayed memory do not grow with the length", "[linear_recurrence]") {
  SECTION("decay per head") { check_long_run<HeadDecay, true>(); }
  SECTION("decay per channel") { check_long_run<ChannelDecay, false>(); }
  SECTION("decay per token") { check_long_run<TokenDecay, true>(); }
  SECTION("decay per token and channel") { check_long_run<TokenChannelDecay, false>(); }
}

}  // namespace
}  // namespace seqmix::test::recurrence
