// Products with packed weights: the projections of all layers.

#include <memory>
#include <seqmix/simd/gemm.hpp>

#include "support/benchmark.hpp"
#include "support/data.hpp"

namespace seqmix::bench {
namespace {

/// x [rows, inputs] times W^T, W [outputs, inputs].
Case product(Index rows, Index inputs, Index outputs, int threads) {
  struct Data {
    Rng rng{1};
    Tensor x, y;
    Matrix<float> weight;
    PackedMatrix<float> packed;
    Workspace workspace;
    explicit Data(Executor& on) : workspace(on) {}
  };
  const auto data = std::make_shared<Data>(executor(threads));
  data->x = Tensor(rows, 1, inputs, -1, 1, data->rng);
  data->y = Tensor(rows, 1, outputs);
  data->weight = uniform_matrix<float>(outputs, inputs, 1, data->rng);
  data->packed = PackedMatrix<float>(data->weight);

  Case result;
  result.run = [data] { multiply(data->x.flat(), data->packed, FromZero{}, data->y.flat(), data->workspace); };
  result.check = [data] {
    Comparison comparison;
    for (const Index t : sampled_rows(data->x.flat().length())) {
      for (Index n = 0; n < data->weight.rows(); ++n) {
        double sum = 0;
        for (Index k = 0; k < data->weight.cols(); ++k)
          sum += double(data->x.flat()(t, k)) * double(data->weight(n, k));
        comparison.add(data->y.flat().row(t) + n, &sum, 1);
      }
    }
    comparison.expect_within(1e-5, "the product");
  };
  result.work = work::projection(double(rows), double(inputs), double(outputs));
  result.workspace_bytes = [data] { return data->workspace.capacity_bytes(); };
  return result;
}

const bool registered = [] {
  add_benchmark("kernel/gemm/512x768x768", [](int threads) { return product(512, 768, 768, threads); });
  add_benchmark("kernel/gemm/512x768x3072", [](int threads) { return product(512, 768, 3072, threads); });
  add_benchmark("kernel/gemm/16x768x768", [](int threads) { return product(16, 768, 768, threads); });
  add_benchmark("kernel/gemv/768x768", [](int threads) { return product(1, 768, 768, threads); });
  return true;
}();

}  // namespace
}  // namespace seqmix::bench
