// The linear recurrence engine in double, and what it refuses.
#include <catch2/catch_test_macros.hpp>
#include <stdexcept>

#include "linear_recurrence_cases.hpp"

namespace seqmix::test::recurrence {
namespace {

TEST_CASE("linear recurrence, no decay, double", "[linear_recurrence]") {
  SECTION("read after the update, normalised") { check_policy<Inputs<double, NoDecay, false, true>>(); }
  SECTION("read before the update") { check_policy<Inputs<double, NoDecay, true, false>>(); }
}
TEST_CASE("linear recurrence, decay per head, double", "[linear_recurrence]") {
  SECTION("read after the update") { check_policy<Inputs<double, HeadDecay, false, false>>(); }
  SECTION("read before the update, normalised") { check_policy<Inputs<double, HeadDecay, true, true>>(); }
}
TEST_CASE("linear recurrence, decay per channel, double", "[linear_recurrence]") {
  SECTION("read after the update, normalised") { check_policy<Inputs<double, ChannelDecay, false, true>>(); }
  SECTION("read before the update") { check_policy<Inputs<double, ChannelDecay, true, false>>(); }
}
TEST_CASE("linear recurrence, decay per token, double", "[linear_recurrence]") {
  SECTION("read after the update") { check_policy<Inputs<double, TokenDecay, false, false>>(); }
  SECTION("read before the update, normalised") { check_policy<Inputs<double, TokenDecay, true, true>>(); }
}
TEST_CASE("linear recurrence, decay per token and channel, double", "[linear_recurrence]") {
  SECTION("read after the update, normalised") { check_policy<Inputs<double, TokenChannelDecay, false, true>>(); }
  SECTION("read before the update") { check_policy<Inputs<double, TokenChannelDecay, true, false>>(); }
}
TEST_CASE("linear recurrence, sum that is rescaled, double", "[linear_recurrence]") {
  check_policy<Inputs<double, RescaledSum, false, false>>();
}
TEST_CASE("linear recurrence, decay per token and value channel, double", "[linear_recurrence]") {
  check_policy<Inputs<double, TokenValueChannelDecay, false, false>>();
}

TEST_CASE("linear recurrence, weighted tokens, double", "[linear_recurrence]") {
  SECTION("decay per token") { check_policy<Inputs<double, WeightedTokenDecay, false, false>>(); }
  SECTION("decay per head") { check_policy<Inputs<double, WeightedHeadDecay, false, false>>(); }
}

TEST_CASE("linear recurrence, any number of threads gives the same bits, double", "[linear_recurrence]") {
  check_threads<Inputs<double, NoDecay, false, true>>();
  check_threads<Inputs<double, NoDecay, true, false>>();
  check_threads<Inputs<double, HeadDecay, false, false>>();
  check_threads<Inputs<double, HeadDecay, true, true>>();
  check_threads<Inputs<double, ChannelDecay, false, true>>();
  check_threads<Inputs<double, ChannelDecay, true, false>>();
  check_threads<Inputs<double, TokenDecay, false, false>>();
  check_threads<Inputs<double, TokenDecay, true, true>>();
  check_threads<Inputs<double, TokenChannelDecay, false, true>>();
  check_threads<Inputs<double, TokenChannelDecay, true, false>>();
}

TEST_CASE("linear recurrence, NaN and infinity go where the equations take them, double", "[linear_recurrence]") {
  check_not_a_number<Inputs<double, NoDecay, true, false>>();
  check_not_a_number<Inputs<double, HeadDecay, false, false>>();
  check_not_a_number<Inputs<double, ChannelDecay, true, false>>();
  check_not_a_number<Inputs<double, TokenDecay, false, false>>();
  check_not_a_number<Inputs<double, TokenChannelDecay, true, false>>();
}

TEST_CASE("linear recurrence, shapes that don't fit are refused", "[linear_recurrence]") {
  std::vector<double> query(40), key(40), value(60), memory(60), output(120);
  const HeadSequence<const double> q(query.data(), 5, 2, 4), k(key.data(), 5, 1, 4), v(value.data(), 5, 2, 5);
  const MemoryView<double> m(memory.data(), 2, 4, 5);
  const HeadSequence<double> y(output.data(), 5, 2, 5);
  const auto refused = [&](HeadSequence<const double> query_given, HeadSequence<const double> key_given,
                           HeadSequence<const double> value_given, MemoryView<double> memory_given,
                           HeadSequence<double> output_given) {
    try {
      expect_recurrence_shapes<double>("name", query_given, key_given, value_given, memory_given, output_given);
    } catch (const std::invalid_argument& error) {
      return std::string(error.what()).starts_with("name: ");
    }
    return false;
  };
  CHECK_FALSE(refused(q, k, v, m, y));
  CHECK(refused({query.data(), 4, 2, 4}, k, v, m, y));   // another length
  CHECK(refused(q, {key.data(), 5, 1, 3}, v, m, y));     // another key_dim
  CHECK(refused(q, k, {value.data(), 5, 2, 4}, m, y));   // another value_dim
  CHECK(refused(q, {key.data(), 5, 0, 4}, v, m, y));     // no heads
  CHECK(refused({query.data(), 5, 3, 2}, k, v, m, y));   // 3 heads do not divide 2
  CHECK(refused(q, k, v, m, {output.data(), 5, 3, 5}));  // another number of heads
  CHECK(refused(q, k, v, {memory.data(), 2, 4, 4}, y));  // another memory
  CHECK(refused(q, k, v, m, {query.data(), 5, 2, 5}));   // the output overlaps the query
  CHECK(refused(q, k, v, {output.data(), 2, 4, 5}, y));  // and the memory
  CHECK(refused({memory.data(), 5, 2, 4}, k, v, m, y));  // the memory overlaps the query
}

}  // namespace
}  // namespace seqmix::test::recurrence
