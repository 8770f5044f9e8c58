// Messages say operator, tensor, expected shape and given shape; overlaps are found.
#include <catch2/catch_test_macros.hpp>
#include <seqmix/core/error.hpp>
#include <seqmix/core/parameters.hpp>
#include <string>
#include <vector>

namespace seqmix {
namespace {

template <class Call>
std::string message_of(Call call) {
  try {
    call();
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "no exception";
}

TEST_CASE("messages") {
  CHECK(message_of([] {
          expect_shape("softmax_attention", "query", {3, 4, 64}, {3, 4, 32});
        }) == "softmax_attention: query: expected shape [3, 4, 64], given [3, 4, 32]");
  CHECK(message_of([] { expect(false, "retention", "heads", "must divide channels"); }) ==
        "retention: heads: must divide channels");
  CHECK(message_of([] {
          expect_tensor("retention", "q_proj.weight", {8, 8}, Matrix<float>());
        }) == "retention: q_proj.weight: missing; expected shape [8, 8]");
  CHECK(message_of([] { expect_tensor("retention", "bias", {8}, Vector<float>(7)); }) ==
        "retention: bias: expected shape [8], given [7]");
  CHECK(message_of([] { expect_shape("x", "y", {1}, {1}); }) == "no exception");
  CHECK(message_of([] { expect_shape("x", "y", {1, 2}, {1}); }) == "x: y: expected shape [1, 2], given [1]");
}

TEST_CASE("shapes of views") {
  std::vector<float> numbers(24);
  const Sequence<float> rows(numbers.data(), 4, 6);
  CHECK(Shape(rows) == Shape{4, 6});
  CHECK(Shape(rows.heads(3)) == Shape{4, 3, 2});
  CHECK(Shape(rows.token(0)) == Shape{6});
  CHECK(Shape(Matrix<double>(2, 3)) == Shape{2, 3});
  CHECK(Shape(Vector<double>(2)) == Shape{2});
  CHECK_FALSE(Shape{4, 6} == Shape{4, 6, 1});
  CHECK(Shape{}.text() == "[]");
}

template <class A, class B>
bool overlap(const A& a, const B& b) {
  const bool forth = message_of([&] { expect_disjoint("op", "y", a, "x", b); }) != "no exception";
  const bool back = message_of([&] { expect_disjoint("op", "y", b, "x", a); }) != "no exception";
  CHECK(forth == back);
  return forth;
}

TEST_CASE("overlaps") {
  std::vector<float> numbers(200);
  const Sequence<float> all(numbers.data(), 10, 20);
  CHECK(overlap(all, all));
  CHECK(overlap(all, all.rows(3, 1)));
  CHECK_FALSE(overlap(all.rows(0, 5), all.rows(5, 5)));
  CHECK(overlap(all.rows(0, 6), all.rows(5, 5)));
  CHECK_FALSE(overlap(all.columns(0, 10), all.columns(10, 10)));
  CHECK(overlap(all.columns(0, 11), all.columns(10, 10)));
  CHECK_FALSE(overlap(all.columns(0, 5), all.columns(15, 5)));
  CHECK_FALSE(overlap(all.columns(0, 10).rows(3, 7), all.columns(10, 10).rows(0, 5)));
  CHECK(overlap(all.columns(0, 10).rows(3, 7), all.columns(9, 3).rows(0, 5)));
  CHECK_FALSE(overlap(all.rows(0, 0), all));
  CHECK_FALSE(overlap(all.columns(0, 0), all));

  // A column block that begins in the row before: the same residues.
  const Sequence<float> wrapped(numbers.data() + 15, 9, 10, 20);  // columns 15 .. 24, that is 15 .. 19 and 0 .. 4
  CHECK(overlap(wrapped, all.columns(0, 5)));
  CHECK(overlap(wrapped, all.columns(15, 5)));
  CHECK_FALSE(overlap(wrapped, all.columns(5, 10)));

  const auto heads = all.heads(4);
  CHECK(overlap(heads.columns(0, 2), all.columns(0, 1)));
  CHECK(overlap(all.token(3), all.rows(3, 1)));
  CHECK_FALSE(overlap(all.token(3), all.rows(4, 2)));

  // Strides may be negative: rows 2 .. 5 of eight numbers, read backwards in tokens, in heads or in both.
  const HeadSequence<float> forwards(numbers.data() + 16, 4, 2, 4, 8, 4);
  const HeadSequence<float> backwards[] = {{numbers.data() + 40, 4, 2, 4, -8, 4},
                                           {numbers.data() + 20, 4, 2, 4, 8, -4},
                                           {numbers.data() + 44, 4, 2, 4, -8, -4}};
  for (const auto& view : backwards) {
    CHECK(overlap(view, forwards));
    CHECK(overlap(view, forwards.rows(0, 1)));
    CHECK(overlap(view, forwards.rows(3, 1)));
    CHECK(overlap(view.rows(0, 1), forwards));
    CHECK(overlap(view.rows(3, 1), forwards));
    CHECK_FALSE(overlap(view, HeadSequence<float>(numbers.data() + 8, 1, 2, 4)));
    CHECK_FALSE(overlap(view, HeadSequence<float>(numbers.data() + 48, 1, 2, 4)));
  }

  // The same with one head: rows 2 .. 5, read backwards.
  const Sequence<float> ahead(numbers.data() + 16, 4, 8), back(numbers.data() + 40, 4, 8, -8);
  CHECK(overlap(back, back));
  CHECK(overlap(back, ahead));
  CHECK(overlap(back.rows(3, 1), ahead.rows(0, 1)));
  CHECK(overlap(back, ahead.columns(3, 2)));
  CHECK_FALSE(overlap(back.rows(0, 3), ahead.rows(0, 1)));
  CHECK_FALSE(overlap(back, Sequence<float>(numbers.data() + 8, 1, 8)));
  CHECK_FALSE(overlap(back, Sequence<float>(numbers.data() + 48, 1, 8)));

  std::vector<float> others(200);
  CHECK_FALSE(overlap(all, Sequence<float>(others.data(), 10, 20)));
  CHECK(message_of([&] { expect_disjoint("op", "y", all, "x", all); }) == "op: y: overlaps x in memory");
}

TEST_CASE("what does not divide is named with its numbers") {
  CHECK_NOTHROW(expect_divides("op", "heads", 2, "channels", 8));
  CHECK(message_of([] { expect_divides("op", "heads", 3, "channels", 8); }) ==
        "op: heads: must be positive and divide channels: given 3 and 8");
  CHECK_THROWS_AS(expect_divides("op", "heads", 0, "channels", 8), std::invalid_argument);
  CHECK_THROWS_AS(expect_divides("op", "heads", 2, "channels", 0), std::invalid_argument);
}

}  // namespace
}  // namespace seqmix
