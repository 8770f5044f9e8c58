// The register tile and products with packed matrices, against sums in double.
#include <algorithm>
#include <bit>
#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <cstring>
#include <limits>
#include <seqmix/core/random.hpp>
#include <seqmix/simd/gemm.hpp>
#include <vector>

#include "support/allocations.hpp"
#include "support/executors.hpp"

namespace {

using seqmix::Batch;
using seqmix::Buffer;
using seqmix::ConstSequence;
using seqmix::FromBias;
using seqmix::FromOutput;
using seqmix::FromZero;
using seqmix::Index;
using seqmix::lanes;
using seqmix::Matrix;
using seqmix::PackedMatrix;
using seqmix::panel_width;
using seqmix::Rng;
using seqmix::Sequence;
using seqmix::Vector;
using seqmix::Workspace;

constexpr Index block_rows = seqmix::detail::block_rows;
template <class T>
constexpr Index slice_depth = seqmix::detail::slice_depth<T>;

// Rows `gap` elements further apart than they are wide, on the heap and not an element longer than needed.
template <class T>
struct Strided {
  Strided(Index rows, Index columns, Index gap, T fill)
      : values(std::size_t(rows > 0 ? (rows - 1) * (columns + gap) + columns : 0), fill),
        view(values.data(), rows, columns, columns + gap) {}
  Strided(const Matrix<T>& matrix, Index gap) : Strided(matrix.rows(), matrix.cols(), gap, nan()) {
    for (Index t = 0; t < matrix.rows(); ++t) std::copy_n(matrix.row(t).data(), matrix.cols(), view.row(t));
  }
  static T nan() { return std::numeric_limits<T>::quiet_NaN(); }

  // The numbers between the rows are still as they were filled.
  bool gaps_are_nan() const {
    for (Index t = 0; t + 1 < view.length(); ++t) {
      for (const T* gap = view.row(t) + view.channels(); gap < view.row(t + 1); ++gap) {
        if (!std::isnan(*gap)) return false;
      }
    }
    return true;
  }

  std::vector<T> values;
  Sequence<T> view;
};

// Largest |c - (start + a b^T)| / (|start| + |a| |b|^T): by the usual analysis of a sum of `depth` fused multiply-adds at
// most depth * eps / 2, to first order.
template <class T>
double relative_error(const Matrix<T>& a, const Matrix<T>& b, const Eigen::MatrixXd& start, ConstSequence<T> c) {
  const Eigen::MatrixXd ad = a.template cast<double>(), bd = b.template cast<double>();
  const Eigen::MatrixXd exact = start + ad * bd.transpose();
  const Eigen::MatrixXd size = start.cwiseAbs() + ad.cwiseAbs() * bd.cwiseAbs().transpose();
  double worst = 0;
  for (Index t = 0; t < c.length(); ++t) {
    for (Index n = 0; n < c.channels(); ++n) {
      const double error = std::abs(double(c(t, n)) - exact(t, n));
      if (error == 0) continue;
      if (!(error / size(t, n) <= worst)) worst = error / size(t, n);  // NaN too
    }
  }
  return worst;
}

// In double the reference rounds too, hence twice the bound.
template <class T>
double bound(Index depth) {
  return double(std::max<Index>(depth, 1)) * double(std::numeric_limits<T>::epsilon());
}

template <class T>
bool same_bits(ConstSequence<T> a, ConstSequence<T> b) {
  for (Index t = 0; t < a.length(); ++t) {
    if (a.channels() > 0 && std::memcmp(a.row(t), b.row(t), std::size_t(a.channels()) * sizeof(T)) != 0) return false;
  }
  return true;
}

}  // namespace

TEMPLATE_TEST_CASE("a register tile multiplies and starts where it is told", "[gemm]", float, double) {
  using T = TestType;
  Rng rng(1);
  constexpr Index rows = 5, vectors = 3, columns = vectors * lanes<T>;
  for (const Index depth : {0, 1, 2, 37}) {
    for (const bool transposed : {false, true}) {
      const Matrix<T> a = seqmix::normal_matrix<T>(rows, depth, 1, rng);
      const Matrix<T> a_stored = transposed ? Matrix<T>(a.transpose()) : a;
      const Matrix<T> b = seqmix::normal_matrix<T>(depth, columns, 1, rng);
      const Matrix<T> start = seqmix::normal_matrix<T>(rows, columns, 1, rng);
      Matrix<T> c(rows, columns);
      seqmix::multiply_tile<rows, vectors>(
          a_stored.data(), transposed ? 1 : depth, transposed ? rows : 1, b.data(), columns, Index(0), depth,
          [&](auto row, auto vector) { return seqmix::load(start.data() + row * columns + vector * lanes<T>); },
          [&](auto row, auto vector, const Batch<T>& sum) {
            seqmix::store(c.data() + row * columns + vector * lanes<T>, sum);
          });
      CHECK(relative_error<T>(a, b.transpose(), start.template cast<double>(), c) <= bound<T>(depth + 1));
    }
  }
}

TEST_CASE("with_rows passes the number on as a constant", "[gemm]") {
  for (Index rows = 1; rows <= seqmix::tile_rows; ++rows) {
    Index seen = 0, calls = 0;
    seqmix::with_rows(rows, [&](auto count) {
      seen = count;
      ++calls;
    });
    CHECK(seen == rows);
    CHECK(calls == 1);
  }
}

TEMPLATE_TEST_CASE("a packed matrix has the documented layout", "[gemm]", float, double) {
  using T = TestType;
  constexpr Index width = panel_width<T>;
  Rng rng(2);
  for (const Index outputs : {Index(0), Index(1), width - 1, width, width + 1, 3 * width + 2}) {
    for (const Index inputs : {0, 1, 7}) {
      const Matrix<T> b = seqmix::normal_matrix<T>(outputs, inputs, 1, rng);
      const PackedMatrix<T> packed{ConstSequence<T>(b)};
      REQUIRE(packed.outputs() == outputs);
      REQUIRE(packed.inputs() == inputs);
      REQUIRE(packed.panels() == (outputs + width - 1) / width);
      for (Index n = 0; n < packed.panels() * width; ++n) {
        for (Index k = 0; k < inputs; ++k) {
          REQUIRE(packed.panel(n / width)[k * width + n % width] == (n < outputs ? b(n, k) : T(0)));
        }
      }
    }
  }
}

TEMPLATE_TEST_CASE("products agree with double for any shape, stride and start", "[gemm]", float, double) {
  using T = TestType;
  constexpr Index width = panel_width<T>, slice = slice_depth<T>;
  Rng rng(3);
  Workspace workspace;
  const std::vector<Index> all_rows = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, block_rows, 2 * block_rows + 1};
  const std::vector<Index> all_outputs = {0, 1, width - 1, width, width + 1, 4 * width, 5 * width - 1, 9 * width + 3};
  const std::vector<Index> all_inputs = {0, 1, 2, 31, slice, slice + 1, 2 * slice + 3};
  for (const Index rows : all_rows) {
    for (const Index outputs : all_outputs) {
      for (const Index inputs : all_inputs) {
        if (rows > 20 && outputs > 2 * width && inputs < slice) continue;
        const Index gap = (rows + outputs + inputs) % 3;
        const Matrix<T> a = seqmix::normal_matrix<T>(rows, inputs, 1, rng);
        const Matrix<T> b = seqmix::normal_matrix<T>(outputs, inputs, 1, rng);
        const PackedMatrix<T> packed{ConstSequence<T>(b)};
        const Strided<T> input(a, gap);
        CAPTURE(rows, outputs, inputs, gap);

        Strided<T> c(rows, outputs, gap, Strided<T>::nan());
        workspace.poison();
        seqmix::multiply(ConstSequence<T>(input.view), packed, FromZero{}, c.view, workspace);
        const Eigen::MatrixXd zero = Eigen::MatrixXd::Zero(rows, outputs);
        REQUIRE(relative_error<T>(a, b, zero, c.view) <= bound<T>(inputs));
        REQUIRE(c.gaps_are_nan());

        const Vector<T> bias = seqmix::normal_matrix<T>(outputs, 1, 1, rng);
        Strided<T> biased(rows, outputs, gap, Strided<T>::nan());
        workspace.poison();
        seqmix::multiply(ConstSequence<T>(input.view), packed, FromBias<T>{bias}, biased.view, workspace);
        const Eigen::MatrixXd bias_rows = bias.transpose().template cast<double>().replicate(rows, 1);
        REQUIRE(relative_error<T>(a, b, bias_rows, biased.view) <= bound<T>(inputs + 1));

        const Matrix<T> before = seqmix::normal_matrix<T>(rows, outputs, 1, rng);
        Strided<T> sum(before, gap);
        workspace.poison();
        seqmix::multiply(ConstSequence<T>(input.view), packed, FromOutput{}, sum.view, workspace);
        REQUIRE(relative_error<T>(a, b, before.template cast<double>(), sum.view) <= bound<T>(inputs + 1));
        REQUIRE(sum.gaps_are_nan());
      }
    }
  }
}

TEMPLATE_TEST_CASE("a row of a product has the same bits alone and on any executor", "[gemm]", float, double) {
  using T = TestType;
  Rng rng(4);
  const auto executors = seqmix::test::all_executors();
  const Index shapes[][3] = {{1, 900, 700}, {2, 700, 500},  {5, 300, 400},
                             {7, 300, 300}, {40, 130, 270}, {2 * block_rows + 11, 100, 300}};
  for (const auto& [rows, outputs, inputs] : shapes) {
    const Matrix<T> a = seqmix::normal_matrix<T>(rows, inputs, 1, rng);
    const Matrix<T> b = seqmix::normal_matrix<T>(outputs, inputs, 1, rng);
    const Vector<T> bias = seqmix::normal_matrix<T>(outputs, 1, 1, rng);
    const PackedMatrix<T> packed{ConstSequence<T>(b)};
    CAPTURE(rows, outputs, inputs);
    Workspace serial;
    Matrix<T> alone(rows, outputs);
    for (Index t = 0; t < rows; ++t) {
      seqmix::multiply(ConstSequence<T>(a).rows(t, 1), packed, FromBias<T>{bias}, Sequence<T>(alone).rows(t, 1),
                       serial);
    }
    for (const auto& [name, executor] : executors) {
      CAPTURE(name);
      Workspace workspace(*executor);
      Matrix<T> c = Matrix<T>::Constant(rows, outputs, Strided<T>::nan());
      seqmix::multiply(ConstSequence<T>(a), packed, FromBias<T>{bias}, Sequence<T>(c), workspace);
      CHECK(same_bits<T>(alone, c));
    }
  }
}

TEMPLATE_TEST_CASE("NaN and infinity stay in their row and column of a product", "[gemm]", float, double) {
  using T = TestType;
  Rng rng(5);
  Workspace workspace;
  const T infinity = std::numeric_limits<T>::infinity();
  for (const Index rows : {1, 4, 13}) {
    const Index outputs = 2 * panel_width<T> + 3, inputs = 2 * slice_depth<T> + 5;
    for (const T special : {Strided<T>::nan(), infinity}) {
      Matrix<T> a = seqmix::normal_matrix<T>(rows, inputs, 1, rng),
                b = seqmix::normal_matrix<T>(outputs, inputs, 1, rng);
      Matrix<T> c(rows, outputs);
      const Index bad_row = rows / 2;
      a(bad_row, inputs - 1) = special;
      seqmix::multiply(ConstSequence<T>(a), PackedMatrix<T>{ConstSequence<T>(b)}, FromZero{}, Sequence<T>(c),
                       workspace);
      for (Index t = 0; t < rows; ++t) {
        for (Index n = 0; n < outputs; ++n) REQUIRE(std::isfinite(c(t, n)) == (t != bad_row));
      }
      a(bad_row, inputs - 1) = T(1);
      b(outputs - 1, 0) = special;
      seqmix::multiply(ConstSequence<T>(a), PackedMatrix<T>{ConstSequence<T>(b)}, FromZero{}, Sequence<T>(c),
                       workspace);
      for (Index t = 0; t < rows; ++t) {
        for (Index n = 0; n < outputs; ++n) REQUIRE(std::isfinite(c(t, n)) == (n != outputs - 1));
      }
    }
  }
}

TEST_CASE("a product allocates nothing once the workspace is warm", "[gemm]") {
  Rng rng(6);
  Workspace workspace;
  const Matrix<float> b = seqmix::normal_matrix<float>(100, 300, 1, rng);
  const PackedMatrix<float> packed{ConstSequence<float>(b)};
  for (const Index rows : {1, 5, 30, 200}) {
    const Matrix<float> a = seqmix::normal_matrix<float>(rows, 300, 1, rng);
    Matrix<float> c(rows, 100);
    const auto run = [&] {
      seqmix::multiply(ConstSequence<float>(a), packed, FromZero{}, Sequence<float>(c), workspace);
    };
    run();
    const auto before = seqmix::test::allocation_count();
    run();
    CHECK(seqmix::test::allocation_count() == before);
  }
}
