// Views: what converts to them and what must not compile.
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers.hpp>
#include <concepts>
#include <seqmix/core/buffer.hpp>
#include <seqmix/core/view.hpp>
#include <stdexcept>
#include <vector>

namespace seqmix {
namespace {

template <class T>
using RowMajor = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using ColumnMajor = Eigen::MatrixXf;
using Expression = decltype(std::declval<Matrix<float>>() + std::declval<Matrix<float>>());
using Product = decltype(std::declval<Matrix<float>>() * std::declval<Matrix<float>>());
using Transposed = decltype(std::declval<Matrix<float>>().transpose());

template <class From, class To>
concept ConvertsTo = std::convertible_to<From, To>;

// Row-major matrices, blocks and maps are views in place.
static_assert(ConvertsTo<Matrix<float>&, Sequence<float>>);
static_assert(ConvertsTo<const Matrix<float>&, ConstSequence<float>>);
static_assert(ConvertsTo<RowMajor<float>&, Sequence<float>>);
static_assert(ConvertsTo<decltype(std::declval<Matrix<float>&>().topRows(1)), Sequence<float>>);
static_assert(ConvertsTo<decltype(std::declval<Matrix<float>&>().middleCols(1, 2)), Sequence<float>>);
static_assert(ConvertsTo<Eigen::Map<Matrix<float>>, Sequence<float>>);
static_assert(ConvertsTo<Eigen::Map<const Matrix<float>>, ConstSequence<float>>);
static_assert(ConvertsTo<Eigen::Map<Matrix<float>, 0, Eigen::OuterStride<>>, Sequence<float>>);

// What is not row-major, or would need a copy, is not.
static_assert(!ConvertsTo<ColumnMajor&, Sequence<float>>);
static_assert(!ConvertsTo<const ColumnMajor&, ConstSequence<float>>);
static_assert(!ConvertsTo<Expression, ConstSequence<float>>);
static_assert(!ConvertsTo<Product, ConstSequence<float>>);
static_assert(!ConvertsTo<Transposed, ConstSequence<float>>);
static_assert(!ConvertsTo<Eigen::Map<Matrix<float>, 0, Eigen::Stride<Eigen::Dynamic, 2>>, Sequence<float>>);

// Scalars are never converted, and constness is never dropped.
static_assert(!ConvertsTo<Matrix<double>&, Sequence<float>>);
static_assert(!ConvertsTo<const Matrix<double>&, ConstSequence<float>>);
static_assert(!ConvertsTo<const Matrix<float>&, Sequence<float>>);
static_assert(!ConvertsTo<Eigen::Map<const Matrix<float>>, Sequence<float>>);
static_assert(!ConvertsTo<Sequence<const float>, Sequence<float>>);
static_assert(!ConvertsTo<Token<const float>, Token<float>>);
static_assert(!ConvertsTo<HeadSequence<const float>, HeadSequence<float>>);
static_assert(ConvertsTo<Sequence<float>, ConstSequence<float>>);
static_assert(ConvertsTo<HeadSequence<float>, ConstHeadSequence<float>>);

// Tokens are contiguous: vectors are, rows of a row-major matrix are, columns are not.
static_assert(ConvertsTo<Vector<float>&, Token<float>>);
static_assert(ConvertsTo<std::span<float>, Token<float>>);
static_assert(ConvertsTo<decltype(std::declval<Matrix<float>&>().row(0)), Token<float>>);
static_assert(!ConvertsTo<decltype(std::declval<Matrix<float>&>().col(0)), Token<float>>);
static_assert(!ConvertsTo<decltype(std::declval<Vector<float>&>() * 2.0F), ConstToken<float>>);
static_assert(ConvertsTo<Token<float>, Sequence<float>>);
static_assert(!ConvertsTo<Sequence<float>, Token<float>>);

// Views are small values.
static_assert(std::is_trivially_copyable_v<Sequence<float>> && sizeof(Sequence<float>) == 4 * sizeof(void*));
static_assert(std::is_trivially_copyable_v<HeadSequence<float>> && std::is_trivially_copyable_v<Token<float>>);

// The Const names take no part in deduction: a function deduces its scalar from the output alone.
template <class T>
Index rows_of(ConstSequence<T> input, Sequence<T>) {
  return input.length();
}

TEST_CASE("a matrix and its view share their numbers") {
  Matrix<float> matrix = Matrix<float>::Random(5, 7);
  const Sequence<float> view = matrix;
  CHECK(view.data() == matrix.data());
  CHECK(view.length() == 5);
  CHECK(view.channels() == 7);
  CHECK(view.stride() == 7);
  view(3, 2) = 42;
  CHECK(matrix(3, 2) == 42);
  CHECK(rows_of(matrix, view) == 5);

  const Sequence<float> block = matrix.block(1, 2, 3, 4);
  CHECK(block.data() == &matrix(1, 2));
  CHECK(block.length() == 3);
  CHECK(block.channels() == 4);
  CHECK(block.stride() == 7);
  CHECK(&block(2, 3) == &matrix(3, 5));
}

TEST_CASE("empty views") {
  const Sequence<float> none;
  CHECK(none.length() == 0);
  CHECK(none.channels() == 0);
  Matrix<float> empty(0, 4);
  const Sequence<float> view = empty;
  CHECK(view.length() == 0);
  CHECK(view.channels() == 4);
  CHECK(view.rows(0, 0).length() == 0);
  CHECK(view.columns(4, 0).channels() == 0);
  CHECK(HeadSequence<float>().length() == 0);
  CHECK(Token<float>().channels() == 0);
}

TEST_CASE("parts of a sequence") {
  std::vector<double> numbers(24);
  for (std::size_t i = 0; i < numbers.size(); ++i) numbers[i] = double(i);
  const Sequence<double> all(std::span<double>(numbers), 6);
  CHECK_THROWS_WITH(Sequence<double>(std::span<double>(numbers), 7),
                    "view: " + std::to_string(numbers.size()) + " numbers are no whole rows of 7 channels");
  CHECK(all.length() == 4);
  CHECK(all.rows(1, 2)(1, 5) == 17);
  CHECK(all.columns(2, 3)(3, 1) == 21);
  CHECK(all.rows(1, 3).columns(4, 2)(2, 1) == 23);
  CHECK(all.token(2)[3] == 15);
  CHECK(all.row(4) == numbers.data() + 24);

  const HeadSequence<double> heads = all.heads(3);
  CHECK(heads.heads() == 3);
  CHECK(heads.head_dim() == 2);
  CHECK(heads(2, 1, 1) == 15);
  CHECK(heads.head(2)(3, 0) == 22);
  CHECK(heads.rows(1, 2).flat()(0, 0) == 6);
  CHECK(heads.columns(1, 1)(0, 2, 0) == 5);
  CHECK(heads.flat().channels() == 6);
}

TEST_CASE("column blocks of a fused matrix") {
  Matrix<float> fused = Matrix<float>::Random(4, 12);
  const Sequence<float> all = fused;
  const auto key = all.columns(4, 4).heads(2);
  CHECK(&key(3, 1, 1) == &fused(3, 7));
  CHECK(key.row_stride() == 12);
  CHECK(key.head_stride() == 2);
}

TEST_CASE("heads outermost") {
  std::vector<float> numbers(2 * 5 * 3);
  for (std::size_t i = 0; i < numbers.size(); ++i) numbers[i] = float(i);
  const HeadSequence<float> view(numbers.data(), 5, 2, 3, 3, 15);  // [heads, length, head_dim]
  CHECK(view(4, 1, 2) == 29);
  CHECK(view.head(1)(0, 0) == 15);
  CHECK(view.head(1).stride() == 3);
}

TEST_CASE("buffers are aligned") {
  for (const std::size_t size : {1U, 3U, 100U}) {
    const Buffer<float> buffer(size);
    CHECK(reinterpret_cast<std::uintptr_t>(buffer.data()) % memory_alignment == 0);
    CHECK(buffer == Buffer<float>(size, 0.0F));
  }
}

TEST_CASE("views cut out of range throw") {
  std::vector<float> numbers(24);
  const Sequence<float> view(numbers.data(), 4, 6);
  CHECK(view.rows(4, 0).length() == 0);
  CHECK(view.columns(6, 0).channels() == 0);
  CHECK_THROWS_WITH(view.rows(3, 2), "view: rows 3 .. 4 of 4");
  CHECK_THROWS_AS(view.rows(-1, 2), std::invalid_argument);
  CHECK_THROWS_AS(view.rows(0, -1), std::invalid_argument);
  CHECK_THROWS_WITH(view.columns(2, 5), "view: columns 2 .. 6 of 6");
  CHECK_THROWS_WITH(view.heads(4), "view: 4 heads do not divide 6 channels");
  CHECK_THROWS_AS(view.heads(0), std::invalid_argument);
  const auto heads = view.heads(2);
  CHECK_THROWS_AS(heads.head(2), std::invalid_argument);
  CHECK_THROWS_AS(heads.rows(1, 4), std::invalid_argument);
  CHECK_THROWS_AS(heads.columns(1, 3), std::invalid_argument);
}

}  // namespace
}  // namespace seqmix
