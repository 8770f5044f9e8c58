// The engines behind many operators: elementwise scans and time-invariant diagonal systems.
#include <algorithm>
#include <cmath>
#include <complex>
#include <memory>
#include <seqmix/engine/scan_time_invariant.hpp>
#include <seqmix/recurrent/hgrn.hpp>
#include <string>

#include "support/data.hpp"

namespace seqmix::bench {
namespace {

/// h = e^g h + x. The core of HGRN at 768 channels; few channels are cut into segments of time.
Case gated_scan(Index length, Index channels, int threads) {
  struct Data {
    Data(Index of_length, Index of_channels, int of_threads)
        : log_decay(of_length, 1, of_channels, -0.02, 0, rng),
          input(of_length, 1, of_channels, -1, 1, rng),
          output(of_length, 1, of_channels),
          state(1, 1, of_channels),
          workspace(executor(of_threads)) {}
    Rng rng{3};
    Tensor log_decay, input, output, state;
    Workspace workspace;
  };
  const auto data = std::make_shared<Data>(length, channels, threads);
  Case result;
  result.prepare = [=] { std::fill(data->state.numbers().begin(), data->state.numbers().end(), 0.0f); };
  result.run = [=] {
    hgrn<float>(data->log_decay.flat(), data->input.flat(), data->state.flat().token(0), data->output.flat(),
                data->workspace);
  };
  result.check = [=] {
    Comparison comparison;
    for (const Index c : {Index(0), channels - 1}) {
      double h = 0;
      for (Index t = 0; t < length; ++t) {
        h = std::exp(double(data->log_decay.flat()(t, c))) * h + double(data->input.flat()(t, c));
        comparison.add(&data->output.flat()(t, c), &h, 1);
      }
    }
    comparison.expect_within(1e-5, "the gated scan");
  };
  result.work = work::gated_scan(length, channels);
  result.tokens = length;
  result.state_bytes = Index(data->state.numbers().size() * sizeof(float));
  result.workspace_bytes = [data] { return data->workspace.capacity_bytes(); };
  return result;
}

/// Complex states of constant decays, as in S4D.
Case diagonal_system(Index length, Index channels, Index states, int threads) {
  struct Data {
    Data(Index of_length, Index of_channels, Index of_states, int of_threads)
        : input(of_length, 1, of_channels, -1, 1, rng),
          output(of_length, 1, of_channels),
          state(2, of_channels, of_states),
          change(random(of_channels, of_states)),
          write(random(of_channels, of_states)),
          read(random(of_channels, of_states)),
          workspace(executor(of_threads)) {
      for (Index h = 0; h < of_channels; ++h) {
        for (Index n = 0; n < of_states; ++n) {
          const auto a = std::polar(std::exp(rng.uniform(-0.1, -1e-3)), rng.uniform(-3, 3));
          change.real(h, n) = float(a.real() - 1), change.imag(h, n) = float(a.imag());
        }
      }
      system = DiagonalSystem<float, true>("diagonal_system", change, write, read, {});
    }
    ComplexMatrix<float> random(Index rows, Index columns) {
      return {normal_matrix<float>(rows, columns, 1, rng), normal_matrix<float>(rows, columns, 1, rng)};
    }
    Rng rng{3};
    Tensor input, output, state;
    ComplexMatrix<float> change, write, read;
    DiagonalSystem<float, true> system;
    Workspace workspace;
  };
  const auto data = std::make_shared<Data>(length, channels, states, threads);
  Case result;
  result.prepare = [=] { std::fill(data->state.numbers().begin(), data->state.numbers().end(), 0.0f); };
  result.run = [=] { data->system.run(data->input.flat(), data->state.view(), data->output.flat(), data->workspace); };
  result.check = [=] {
    Comparison comparison;
    const auto at = [](const ComplexMatrix<float>& matrix, Index h, Index n) {
      return std::complex<double>(double(matrix.real(h, n)), double(matrix.imag(h, n)));
    };
    for (const Index h : {Index(0), channels - 1}) {
      std::vector<std::complex<double>> s(static_cast<std::size_t>(states));
      for (Index t = 0; t < length; ++t) {
        double sum = 0;
        for (Index n = 0; n < states; ++n) {
          auto& state = s[std::size_t(n)];
          state += at(data->change, h, n) * state + at(data->write, h, n) * double(data->input.flat()(t, h));
          sum += (at(data->read, h, n) * state).real();
        }
        comparison.add(&data->output.flat()(t, h), &sum, 1);
      }
    }
    comparison.expect_within(1e-5, "the diagonal system");
  };
  result.work = work::diagonal_system(length, channels, states);
  result.tokens = length;
  result.state_bytes = Index(data->state.numbers().size() * sizeof(float));
  result.workspace_bytes = [data] { return data->workspace.capacity_bytes(); };
  return result;
}

const bool registered = [] {
  add_benchmark("kernel/scan/gated/channels:768/length:2048",
                [](int threads) { return gated_scan(2048, 768, threads); });
  add_benchmark("kernel/scan/gated/channels:8/length:65536", [](int threads) { return gated_scan(65536, 8, threads); });
  add_benchmark("kernel/scan/diagonal_system/channels:768/states:32/length:2048",
                [](int threads) { return diagonal_system(2048, 768, 32, threads); });
  add_benchmark("kernel/scan/diagonal_system/channels:8/states:32/length:65536",
                [](int threads) { return diagonal_system(65536, 8, 32, threads); });
  return true;
}();

}  // namespace
}  // namespace seqmix::bench
